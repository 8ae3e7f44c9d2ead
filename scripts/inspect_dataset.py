"""Looks at recorded data before a model does. The command is `prismatic.commands.inspect_dataset`."""

from prismatic.commands.inspect_dataset import run

if __name__ == "__main__":
    run()
