"""Makes a data set out of others without copying them. The command is `prismatic.commands.make_manifest`."""

from prismatic.commands.make_manifest import run

if __name__ == "__main__":
    run()
