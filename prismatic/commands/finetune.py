"""Fine-tunes an OpenVLA base model on a data set of the registry.

    torchrun --standalone --nnodes 1 --nproc-per-node 1 vla-scripts/finetune.py \\
        --vla_path openvla/openvla-7b --data_root_dir DATA --dataset_name NAME --use_proprio True --num_images_in_input 2

The flags are the fields of `prismatic/training/sections.py`; `--help` lists them. `--config_path vla-scripts/recipes/NAME.yaml`
takes them from a file; flags on the command line win over it.
"""

from prismatic.cli import run_script
from prismatic.training.config import FinetuneConfig


def main(config: FinetuneConfig) -> None:
    from prismatic.training.loop import finetune

    finetune(config)


def run() -> None:
    """Entry point."""
    run_script(main, FinetuneConfig)
