"""Uploads a checkpoint with a generated model card to the Hub. The command is `prismatic.commands.push_to_hub`."""

from prismatic.commands.push_to_hub import run

if __name__ == "__main__":
    run()
