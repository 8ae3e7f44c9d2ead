"""Serves a checkpoint on one port to OpenVLA(-OFT), openpi and vla-eval clients. The command is `prismatic.commands.deploy`."""

from prismatic.commands.deploy import run

if __name__ == "__main__":
    run()
