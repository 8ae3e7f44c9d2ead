"""Resizes the images of raw ALOHA recordings to 256x256 and splits the episodes into train/ and val/ by percentage; HDF5 in, HDF5 out.

python experiments/robot/aloha/preprocess_split_aloha_data.py --dataset_path raw/fold --out_base_dir preprocessed --percent_val 0.05

The result, preprocessed/fold/{train,val}/, can be trained on as it is or converted with scripts/convert/aloha_hdf5_to_rlds.py. Episodes
that are there already are skipped, so an interrupted run goes on when the same command is run again.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from prismatic.cli import run_script
from prismatic.conversion.aloha_preprocessing import divide, preprocess_recording
from prismatic.conversion.staging import only_writer
from prismatic.stages import keep_settings
from prismatic.vla.datasets.hdf5.layout import find_files
from prismatic.vla.datasets.split_names import VAL_FRACTION
from prismatic.vla.types import check_side


@dataclass
class PreprocessConfig:
    """Flags, as in the published script."""

    dataset_path: Path  # folder of raw episode_*.hdf5 files
    out_base_dir: Path  # the result lands in out_base_dir/<name of dataset_path>/{train,val}
    percent_val: float = VAL_FRACTION  # share of the episodes for validation, 0 to 1, spread over the instructions
    img_resize_size: int = 256  # pixels; images become squares of this side
    instruction: str | None = None  # stored as the language instruction of every episode; None keeps what the recordings say

    def __post_init__(self) -> None:
        if not 0 <= self.percent_val < 1:
            raise ValueError(f"--percent_val is {self.percent_val}; it is a share of at least 0 and less than 1, such as 0.05")
        check_side("--img_resize_size", self.img_resize_size)


def main(config: PreprocessConfig) -> None:
    splits = divide(find_files(config.dataset_path), config.percent_val, config.instruction, config.dataset_path)
    out = config.out_base_dir / config.dataset_path.resolve().name
    for path, split in splits.items():
        other = out / ("train" if split == "val" else "val") / path.name
        if other.exists():
            raise ValueError(f"{other} is there from a run with another --percent_val or other recordings; delete {out} first")
    fixed = {"dataset_path": config.dataset_path.resolve(), "img_resize_size": config.img_resize_size, "instruction": config.instruction}
    keep_settings(out / "settings.json", fixed, f"choose another --out_base_dir, or delete {out} first")
    missing = [(path, split) for path, split in splits.items() if not (out / split / path.name).exists()]
    progress = tqdm(
        missing, desc=f"resizing to {config.img_resize_size}", unit="episode", total=len(splits), initial=len(splits) - len(missing)
    )
    with only_writer(out / ".partial"):
        for path, split in progress:
            preprocess_recording(path, out / split / path.name, config.img_resize_size, config.instruction, config.dataset_path)
        shutil.rmtree(out / ".partial")
    counts = {name: sum(split == name for split in splits.values()) for name in ("train", "val")}
    print(f"{out}: {counts['train']} train, {counts['val']} val episodes")


if __name__ == "__main__":
    run_script(main, PreprocessConfig)
