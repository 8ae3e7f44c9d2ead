"""A checkpoint folder -> its model card: what the policy does, how to load it, the data's statistics, how it was made, what it scored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismatic.policy.checkpoint.files import STATISTICS_FILE, fingerprint
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.policy.checkpoint.verification import adapter_base
from prismatic.vla.constants import NormalizationType

_BOUNDS = {NormalizationType.BOUNDS: ("min", "max"), NormalizationType.BOUNDS_Q99: ("q01", "q99")}
_BOUND_NAMES = {"min": "Smallest", "max": "Largest", "q01": "1st percentile", "q99": "99th percentile"}
_TAGS = ("openvla", "openvla-oft", "robotics", "vision-language-action")


@dataclass(frozen=True)
class CardOptions:
    """What the folder does not say about itself."""

    repo_id: str
    report: Path | None = None  # report.json of an evaluation
    license: str | None = None  # identifier of the Hub, such as mit


@dataclass(frozen=True)
class StatisticsTable:
    """Actions or states of one data set, a row per dimension."""

    heading: str
    columns: tuple[str, str]
    rows: list[tuple[str, ...]]


def build_card(folder: Path, options: CardOptions) -> str:
    """The text of README.md for the whole checkpoint in `folder`.

    Raises:
        ValueError: the report is not that of an evaluation of this policy alone (`read_report`).
    """
    import jinja2

    spec = PolicySpec.load(folder)
    statistics = json.loads((folder / STATISTICS_FILE).read_text())
    report = read_report(options.report, folder) if options.report else {}
    source = (Path(__file__).parent / "model_card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    base, instructions = adapter_base(folder), _instructions(report)
    return environment.from_string(source).render(
        metadata=_metadata(spec, options),
        title=options.repo_id.rpartition("/")[2],
        repo_id=options.repo_id,
        spec=spec,
        platform=spec.platform,
        provenance=_Provenance(spec.provenance),
        weights="the whole model" if base is None else f"adapters alone, of {base}",
        instructions=instructions,
        example=json.dumps(instructions[0] if instructions else "put the cup on the plate", ensure_ascii=False),
        datasets={name: _size(entry) for name, entry in statistics.items()},
        tables=[table for name, entry in statistics.items() for table in _tables(name, entry, spec)],
        scores=_scores(report),
        report_title=report.get("title", ""),
        changes=report.get("changes", []),
        num_missing=report.get("num_missing_episodes", 0),
        num_crashed=report.get("num_crashed_episodes", 0),
        report_command=(report.get("commands") or [""])[-1],
    )


class _Provenance(dict[str, Any]):
    """policy.json's provenance; what it does not say is None."""

    def __missing__(self, key: str) -> None:
        return None


def read_report(path: Path, folder: Path) -> dict[str, Any]:
    """The content of the report.json of an evaluation of the checkpoint in `folder`.

    Raises:
        ValueError: there is no such file, or it is something else: of another policy, of one that an expert helped, or of a collection.
            Reports of earlier versions do not say of which policy they are, and are taken at their word.
    """
    try:
        report = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"--report {path} cannot be read ({error}); pass the report.json of an evaluation") from error
    if not isinstance(report, dict) or not isinstance(report.get("summary"), dict) or "none" not in report["summary"]:
        raise ValueError(f"--report {path} is not the report of a policy; pass the report.json that an evaluation script wrote")
    settings = report.get("settings", {})
    if settings.get("expert_help", "none") != "none" or settings.get("split", "evaluation") != "evaluation":
        raise ValueError(
            f"--report {path} ({report.get('title')}) tells of a collection of rollouts, in which an expert may have helped: "
            "its figures are not the policy's success; pass the report.json that an evaluation script wrote"
        )
    content = str(settings.get("checkpoint_content", ""))
    if len(content) == len(own := fingerprint(folder)) and content != own:  # a Hub id is known by its commit, which is longer
        raise ValueError(
            f"--report {path} is of another policy: {settings.get('pretrained_checkpoint')}, whose files are not those of {folder}; "
            "evaluate the checkpoint that is uploaded"
        )
    return report


def _metadata(spec: PolicySpec, options: CardOptions) -> str:
    """The YAML at the head of the card, which the Hub reads."""
    from huggingface_hub import ModelCardData

    base = str(spec.provenance.get("vla_path", ""))
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()
    data = ModelCardData(
        library_name="openvla-oft-robot",
        pipeline_tag="robotics",
        tags=list(_TAGS),
        base_model=base if is_hub_id else None,
        license=options.license,
    )
    return data.to_yaml()


def _instructions(report: Mapping[str, Any]) -> list[str]:
    """What the policy was told in the evaluation, each text once; [] where these were other words than the tasks' own, on purpose."""
    if any(str(change).startswith("language:") for change in report.get("changes", [])):
        return []
    return list(dict.fromkeys(episode["instruction"] for episode in report.get("episodes", {}).get("none", [])))


def _scores(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Cells of the results: task, success and its interval."""
    rows = []
    for task, score in report.get("summary", {}).get("none", {}).items():
        success = "not evaluated" if score["rate"] is None else f"{score['rate']:.0%}"
        if score.get("num_trials"):
            success += f" ({score['num_successes']}/{score['num_trials']})"
        interval = "-".join(f"{100 * limit:.0f}" for limit in score["interval_95"]) + " %" if "interval_95" in score else ""
        rows.append({"task": task, "success": success, "interval": interval})
    return rows


def _size(entry: Mapping[str, Any]) -> str:
    counts = [f"{entry[key]:,} {word}" for key, word in (("num_trajectories", "episodes"), ("num_transitions", "steps")) if key in entry]
    return ", ".join(counts) or "size unknown"


def _tables(name: str, entry: Mapping[str, Any], spec: PolicySpec) -> list[StatisticsTable]:
    names = {"action": spec.platform.action_names, "proprio": spec.platform.proprio_names}
    headings = {"action": "Actions", "proprio": "State"}
    kinds = ["action", *(["proprio"] if spec.heads.use_proprio else [])]
    low, high = _BOUNDS[spec.platform.normalization]
    return [
        StatisticsTable(
            f"{headings[kind]} of {name}",
            (_BOUND_NAMES[low], _BOUND_NAMES[high]),
            [_row(dimension, number, entry[kind], (low, high, "mean", "std")) for number, dimension in enumerate(names[kind])],
        )
        for kind in kinds
    ]


def _row(dimension: str, number: int, values: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    cells = [f"{values[key][number]:.4g}" if key in values else "" for key in keys]
    is_normalised = values.get("mask", [True] * (number + 1))[number]
    return (dimension, *cells, "yes" if is_normalised else "no")
