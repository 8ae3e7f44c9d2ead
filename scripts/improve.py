"""A policy that gets better by acting: rounds of rollouts, expert help, fine-tuning and evaluation, until it no longer helps.

python scripts/improve.py --pretrained_checkpoint runs/demo/train/demo --demonstrations "[runs/demo/recordings]" --output_dir runs/improve

Each round plays the present policy, has the simulator's scripted expert take over where it drifts (--method takeover), or say at every step
what it would have done (relabel), or keeps the successes alone (filtered); merges that with all before, continues the policy on it and
evaluates. Every round is a folder; the same command goes on where it was interrupted. Rule for stopping, and what is in the folder:
docs/rollouts.md.
"""

from __future__ import annotations

from experiments.robot.improvement.config import ImproveConfig
from experiments.robot.improvement.rounds import improve
from prismatic.cli import run_script


def main(config: ImproveConfig) -> None:
    print(f"\n{improve(config)}\n{config.folder / 'improve.png'}")


if __name__ == "__main__":
    run_script(main, ImproveConfig)
