"""Checks this machine, a checkpoint and a data folder. The command is `prismatic.commands.doctor`."""

from prismatic.commands.doctor import run

if __name__ == "__main__":
    run()
