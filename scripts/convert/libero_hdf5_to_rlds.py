"""Converts HDF5 files of LIBERO or robomimic to an RLDS data set. The command is `prismatic.commands.convert_libero`."""

from prismatic.commands.convert_libero import run

if __name__ == "__main__":
    run()
