"""A fine-tuned policy as files for small computers (Jetson, an industrial PC): torch.export and ONNX programs of the whole call.

python scripts/export.py --pretrained_checkpoint runs/my_run--10000_chkpt --output_dir runs/my_policy_exported
python scripts/export.py --pretrained_checkpoint runs/my_run--10000_chkpt --output_dir runs/my_policy_aoti --formats aoti     compiled here

Neither this project nor transformers nor peft is needed to run them: run_policy.py beside them takes camera images, instruction and state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prismatic.cli import run_script
from prismatic.cli_sections import SECTION
from prismatic.policy.checkpoint.flags import PolicyFlags

_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ExportConfig:
    """What to export."""

    pretrained_checkpoint: str = ""  # folder or Hub id of a fine-tuned policy
    output_dir: Path = Path("runs/exported")  # a folder that does not exist yet
    formats: list[str] = field(default_factory=lambda: ["torch", "onnx"])  # torch, onnx, aoti (needs a C++ compiler and Python's headers)
    dtype: str = "float32"  # float16 for TensorRT; ONNX Runtime on a CPU is best with float32
    flags: PolicyFlags = field(default_factory=PolicyFlags, metadata=SECTION)  # a program takes each of num_diffusion_steps_inference

    def __post_init__(self) -> None:
        from prismatic.policy.export import FORMATS

        if not self.pretrained_checkpoint:
            raise ValueError("--pretrained_checkpoint missing: the folder or Hub id of a fine-tuned policy")
        if not self.formats:
            raise ValueError(f"--formats is empty, so nothing would run; choose among {', '.join(FORMATS)}")
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise ValueError(f"--formats: {', '.join(unknown)} is unknown; choose among {', '.join(FORMATS)}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"--dtype is {self.dtype!r}; choose one of {', '.join(_DTYPES)}")
        if self.dtype == "bfloat16" and "onnx" in self.formats:
            raise ValueError("--dtype bfloat16: ONNX Runtime does not open such a program; pass float16, or --formats torch")


def main(config: ExportConfig) -> None:
    """Entry point."""
    import torch

    from prismatic.policy.checkpoint.loading import LoadOptions, load_parts
    from prismatic.policy.export import check_export, export_policy

    check_export(config.output_dir, config.formats)  # before minutes of loading
    parts = load_parts(config.pretrained_checkpoint, torch.device("cpu"), getattr(torch, config.dtype), LoadOptions(flags=config.flags))
    export_policy(parts, config.output_dir, tuple(config.formats))
    for path in sorted(config.output_dir.iterdir()):
        print(f"{path.stat().st_size / 1e6:10.1f} MB  {path}")


if __name__ == "__main__":
    run_script(main, ExportConfig)
