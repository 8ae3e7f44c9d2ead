"""Draws the curves of one or several runs. The command is `prismatic.commands.plot_run`."""

from prismatic.commands.plot_run import run

if __name__ == "__main__":
    run()
