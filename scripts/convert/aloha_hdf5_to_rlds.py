"""Converts HDF5 recordings in the layout of ALOHA (ACT) to an RLDS data set. The command is `prismatic.commands.convert_aloha`."""

from prismatic.commands.convert_aloha import run

if __name__ == "__main__":
    run()
