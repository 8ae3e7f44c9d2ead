"""Merges the LoRA adapters of a checkpoint into its base model. The command is `prismatic.commands.merge`."""

from prismatic.commands.merge import run

if __name__ == "__main__":
    run()
