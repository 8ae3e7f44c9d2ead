"""Payloads of each protocol <-> `PolicyRequest` and action chunks."""
