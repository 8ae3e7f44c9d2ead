"""Checks this machine, a checkpoint and a data folder. The command is `prismatic.commands.doctor`."""

import sys

try:
    from prismatic.commands.doctor import run
except ModuleNotFoundError as error:  # what a new user meets first
    sys.exit(
        f"error: {sys.executable} has no package {error.name}: the project is not installed in this Python. After make install, activate "
        "its environment (source .venv/bin/activate); another environment needs pip install -e ."
    )

if __name__ == "__main__":
    run()
