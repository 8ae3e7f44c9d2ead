"""A policy over the network: one port, three protocols."""
