"""Whether a resumed run has the robot, the cameras and the episodes that it has had so far, and every process the same ones.

The sampler's position only counts samples: what they are follows from registry, data, transform and flags, all of which may have changed
meanwhile, with as many samples as before. Checkpoints therefore remember their episodes by number and digest (names, lengths,
instructions, paraphrases and weights), and policy.json says what their actions and states were like.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.policy.checkpoint.told import load_statistics
from prismatic.training.distributed import Ranks, gather_objects, raise_together
from prismatic.training.run_folder import Checkpoint, read_checkpoint
from prismatic.vla.constants import RobotPlatform
from prismatic.vla.datasets.dataset import RobotDataset
from prismatic.vla.datasets.split_names import validation_split
from prismatic.vla.datasets.training_data import TrainingData
from prismatic.vla.demonstrated import Demonstrated

_FLAG = "the file of --exclude_episodes"
_TOLERANCE = 1e-3  # of a range; what is computed again on another machine differs by less
_OF_THE_PLATFORM = ("action_dim", "num_actions_chunk", "normalization", "action_kinds", "proprio_dim")


def describe_episodes(data: TrainingData) -> dict[str, dict[str, str]]:
    """Data set -> {"training": "<number> <digest>", "validation": ...} of its episodes, in the order of the mixture."""
    described = {part.spec.name: {"training": _describe(part, data.train.paraphrases)} for part in data.train.parts}
    for part in [] if data.val is None else data.val.parts:
        described[part.spec.name]["validation"] = _describe(part, {})
    return described


def check_alike(data: TrainingData, ranks: Ranks) -> None:
    """Returns if all processes have the same episodes; nodes may have disks, and copies of the data, of their own.

    Raises:
        ValueError: one has others than the first process.
    """
    first, *others = gather_objects(describe_episodes(data), ranks)
    for number, found in enumerate(others, start=1):
        odd = [name for name in first if first[name] != found.get(name)]
        error = ValueError(f"process {number} has other episodes of {', '.join(odd)} than process 0; copy data and {_FLAG} to every node")
        raise_together(error if odd else None, ranks)


def check_robot(checkpoint: Checkpoint, platform: RobotPlatform, cameras: Sequence[str], use_proprio: bool) -> None:
    """Returns if the run of `checkpoint` was for this robot and these cameras; nothing of the data is needed.

    Raises:
        ValueError: it was not; every difference is listed.
    """
    spec = PolicySpec.load(checkpoint.folder)
    names = [name for name in _OF_THE_PLATFORM if use_proprio or name != "proprio_dim"]
    pairs = [(f"{name} of the robot platform", getattr(spec.platform, name), getattr(platform, name)) for name in names]
    pairs += [("cameras", tuple(spec.cameras), tuple(cameras))]
    differences = [f"{what} {shown(then)} then, {shown(now)} now" for what, then, now in pairs if then != now]
    if differences:
        raise ValueError(
            f"resuming: the run in {checkpoint.folder} was for another robot: {'; '.join(differences)}. Restore --robot_platform, the "
            "data set's entry and its platform, or begin a new run without --resume"
        )


def check_data(checkpoint: Checkpoint, data: TrainingData) -> None:
    """Returns if the run of `checkpoint` goes on with the episodes that it has had, and these still say the same.

    Raises:
        ValueError: they do not; the message names the data set and what differs.
    """
    spec = PolicySpec.load(checkpoint.folder)
    for told in (*_other_episodes(checkpoint, data, spec), *_other_values(data, spec)):
        raise ValueError(
            f"resuming: {told}: the position in the data cannot be resumed. Restore what the run in {checkpoint.folder} was started with; "
            "or begin a new run that continues the policy: without --resume, with --vla_path CHECKPOINT (heads and statistics are taken "
            "over) and another --run_id_override"
        )


def doubtful_validation(folder: Path, data: TrainingData) -> list[str]:
    """Of a run that continues the policy in `folder`: what to tell of validation episodes that the policy may have been trained on.

    Episodes that are split off are chosen among all that are there, so that other ones are once episodes were added. Nothing is told of
    recorded splits, of data sets that the policy does not know, and of episodes that it was validated on itself.
    """
    checkpoint, known, now = read_checkpoint(folder), load_statistics(folder), describe_episodes(data)
    then = {} if checkpoint is None else checkpoint.state.episodes
    return [
        f"data set {name}: the {len(part.episodes)} validation episodes are not those that {folder} was validated on. It may have been "
        "trained on some of them, and their errors then look better than they are; record a split for validation to tell"
        for part in ([] if data.val is None else data.val.parts)
        if (name := part.spec.name) in known
        and validation_split(part.index.splits) is None
        and then.get(name, {}).get("validation") != now[name]["validation"]
    ]


def shown(value: Any) -> str:
    """A value of a platform as messages show it."""
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    return str(getattr(value, "value", value))


def _describe(part: RobotDataset, paraphrases: Mapping[str, Sequence[str]]) -> str:
    index, digest = part.index, hashlib.sha256()
    for episode in part.episodes.tolist():
        number = int(index.instruction_ids[index.episode_starts[episode]])
        text = index.instructions[number] if number >= 0 else ""
        told = text or (part.options.default_instruction or "").strip()
        words = "\0".join((text, *paraphrases.get(told, ())[1:]))  # the first is the instruction itself
        digest.update(f"{index.names[episode]}\0{index.lengths[episode]}\0{words}\n".encode())
    if part.shares is not None:
        digest.update(part.shares.tobytes())
    return f"{len(part.episodes)} {digest.hexdigest()[:16]}"


def _other_episodes(checkpoint: Checkpoint, data: TrainingData, spec: PolicySpec) -> Iterator[str]:
    """What of the episodes is otherwise; nothing for a checkpoint of an earlier version, which does not say."""
    known, found = checkpoint.state.episodes, describe_episodes(data)
    if not known:
        return
    if list(known) != list(found):
        yield f"the data sets were {', '.join(known)}, now they are {', '.join(found)}"
        return
    for name, kinds in known.items():
        for kind, description in kinds.items():
            now = found[name].get(kind, "0 -")
            if now == description:
                continue
            (count, _), (count_now, _) = description.split(), now.split()
            numbers = f" ({count} then, {count_now} now)" if count != count_now else ", lengths, instructions, paraphrases or weights"
            yield f"data set {name!r} has other {kind} episodes{numbers}{_exclusions(name, data, spec)}"


def _exclusions(name: str, data: TrainingData, spec: PolicySpec) -> str:
    then, now = spec.provenance.get("excluded_episodes", {}).get(name, ()), data.excluded.get(name, ())
    if list(then) == list(now):
        return ""
    return f"; --exclude_episodes left out {', '.join(then) or 'none'}, now {', '.join(now) or 'none'}"


def _other_values(data: TrainingData, spec: PolicySpec) -> Iterator[str]:
    """Where the same episodes hold other actions, states or cameras than they did."""
    for part in data.train.parts:
        then, now = spec.demonstrated.get(part.spec.name), data.demonstrated[part.spec.name]
        if then is None:  # an earlier version did not say
            continue
        for what, names, pairs in _ranges(part.spec.platform, then, now):
            for name, (old, new) in zip(names, pairs, strict=False):
                if max(abs(a - b) for a, b in zip(old, new, strict=True)) > _TOLERANCE * max(old[1] - old[0], 1e-3):
                    ranges = " to ".join(f"[{low:.4g}, {high:.4g}]" for low, high in (old, new))
                    yield f"{what} of data set {part.spec.name!r} have changed, {name} from {ranges}"
        if then.cameras and then.cameras != now.cameras:
            yield f"data set {part.spec.name!r} shows other cameras, {_cameras(then.cameras)} then, {_cameras(now.cameras)} now"


def _ranges(
    platform: RobotPlatform, then: Demonstrated, now: Demonstrated
) -> Iterator[tuple[str, Sequence[str], list[tuple[tuple[float, float], tuple[float, float]]]]]:
    """(what, names of the dimensions, [(range then, range now)]) of actions and of the states where episodes begin."""
    for what, names, low, high in (
        ("actions", platform.action_names, "action_low", "action_high"),
        ("states", platform.proprio_names, "start_low", "start_high"),
    ):
        old, new = (list(zip(getattr(each, low), getattr(each, high), strict=True)) for each in (then, now))
        yield what, names, list(zip(old, new, strict=False))


def _cameras(cameras: Mapping[str, str]) -> str:
    return ", ".join(f"{slot}={key}" for slot, key in cameras.items())
