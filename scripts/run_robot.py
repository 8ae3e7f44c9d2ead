"""Drives any robot in real time with a policy. The command is `experiments.robot.run_robot`."""

from experiments.robot.run_robot import run

if __name__ == "__main__":
    run()
