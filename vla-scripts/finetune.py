"""Fine-tunes an OpenVLA base model on a data set of the registry. The command is `prismatic.commands.finetune`."""

from prismatic.commands.finetune import run

if __name__ == "__main__":
    run()
