"""Converts a LeRobot data set to an RLDS data set. The command is `prismatic.commands.convert_lerobot`."""

from prismatic.commands.convert_lerobot import run

if __name__ == "__main__":
    run()
