"""A checkpoint folder, and the base model that its adapters need."""

from __future__ import annotations

from pathlib import Path

from prismatic.doctor.machine import describe_hub_model
from prismatic.vla.diagnosis import Finding, Status


def check_checkpoint(folder: Path) -> list[Finding]:
    """Everything that can be known without loading weights."""
    from prismatic.policy.checkpoint.told import newer_policy
    from prismatic.policy.checkpoint.verification import verify_checkpoint

    findings = verify_checkpoint(folder)
    if any(finding.status == Status.PROBLEM for finding in findings):
        return findings
    newer = [] if (told := newer_policy(folder)) is None else [Finding("folder", Status.WARNING, told, "Pass the one that is meant.")]
    return [*findings, *newer, *_check_base(folder)]


def _check_base(folder: Path) -> list[Finding]:
    from prismatic.policy.checkpoint.stored_weights import has_weights
    from prismatic.policy.checkpoint.verification import adapter_base

    base = adapter_base(folder)
    if base is None:
        return []
    if has_weights(Path(base)):
        return [_compare_base(folder, Path(base))]
    if Path(base).is_absolute() or base.count("/") != 1 or base.startswith("."):
        remedy = (
            "Pass the folder where it lies now as --base_checkpoint to merge_lora_weights_and_save.py, which makes the checkpoint whole."
        )
        return [Finding("base model", Status.PROBLEM, f"{base}, which the adapters belong to, is not here", remedy)]
    return [describe_hub_model(base, "base model")]


def _compare_base(folder: Path, base: Path) -> Finding:
    """Whether `base` is the model that the adapters were trained over, as far as policy.json says it."""
    from prismatic.policy.checkpoint.base_files import check_base
    from prismatic.policy.checkpoint.spec import POLICY_FILE, PolicySpec

    known = PolicySpec.load(folder).base_files if (folder / POLICY_FILE).is_file() else {}
    try:
        check_base(folder, known, str(base), base)
    except ValueError as error:
        remedy = "Pass that base as --base_checkpoint to merge_lora_weights_and_save.py, which makes the checkpoint whole."
        return Finding("base model", Status.PROBLEM, str(error), remedy)
    return Finding("base model", Status.OK, str(base))
