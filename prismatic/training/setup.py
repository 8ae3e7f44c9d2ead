"""Flags -> everything a run needs: checked data first, then the model, so that a mistake is reported before anything expensive."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from prismatic.models.action_model import ActionModel
from prismatic.models.vla import num_parameters
from prismatic.policy.checkpoint.base_files import describe_base
from prismatic.policy.checkpoint.continuing import Continuation
from prismatic.policy.checkpoint.loading import BaseModel, load_base, load_config, resolve_folder
from prismatic.policy.checkpoint.parts import PolicyParts, build_action_model
from prismatic.policy.checkpoint.spec import PolicySpec
from prismatic.policy.checkpoint.told import read_training
from prismatic.policy.inference.compilation import NO_COMPILER, compile_blocks, has_compiler
from prismatic.policy.inference.quantization import check_frozen_base, quantize_frozen_base
from prismatic.policy.inference.stacking import stack_projections
from prismatic.policy.lora.adapters import add_lora
from prismatic.training.alike import PACKAGES, check_same_base
from prismatic.training.config import FinetuneConfig
from prismatic.training.distributed import Ranks, any_rank, on_all, on_main, wait_for_all
from prismatic.training.evaluation import eval_command
from prismatic.training.kept_statistics import account_for_statistics
from prismatic.training.loading import data_loader
from prismatic.training.origin import Origin, find_origin, known_anywhere
from prismatic.training.resumed_data import check_alike, check_data, check_robot, describe_episodes, doubtful_validation
from prismatic.training.run_folder import Checkpoint, check_disk, open_run
from prismatic.training.run_lock import RunLock
from prismatic.training.sharding import check_shardable, place
from prismatic.vla.constants import TokenIds
from prismatic.vla.datasets.collator import Collator
from prismatic.vla.datasets.dataset import DatasetOptions
from prismatic.vla.datasets.frame_filling import NodeShare, fill_sequential_caches
from prismatic.vla.datasets.inspection.against import check_against
from prismatic.vla.datasets.inspection.checks import quick_checks
from prismatic.vla.datasets.inspection.view import training_views
from prismatic.vla.datasets.reference_frames import make_reference
from prismatic.vla.datasets.rlds.oxe.materialize import DatasetSpec, resolve_datasets, select_policy_cameras
from prismatic.vla.datasets.sampler import MixtureSampler
from prismatic.vla.datasets.training_data import TrainingData, load_training_data
from prismatic.vla.diagnosis import Finding
from prismatic.vla.images import ImageRecipe
from prismatic.vla.types import Batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What the training loop works with, on one process."""

    config: FinetuneConfig
    ranks: Ranks
    parts: PolicyParts
    data: TrainingData
    train_sampler: MixtureSampler
    collator: Collator
    autocast: bool  # compute in bfloat16 while trained weights stay in float32
    base_path: str  # the model that the run started from; a folder by its whole path
    base_files: Mapping[str, str]  # what that model is, whatever its path
    episodes: Mapping[str, Mapping[str, str]]  # what is trained and validated on, on the main process
    started_from: str  # --vla_path when the run began: a base model, or a checkpoint that it continued
    base_folder: Path  # where that lies on this node
    eval_command: str | None  # evaluates a checkpoint in closed loop; None: no evaluation while training
    resumed: Checkpoint | None  # where the run goes on; None: it begins
    skeleton: ActionModel | None  # of a sharded model: the whole one, without memory
    lock: RunLock | None = None  # on the main process, if nobody else may write the run's folders

    def check_writer(self) -> None:
        """Returns if this process may write the run's folders.

        Raises:
            ValueError: another one has taken the run over.
        """
        if self.lock is not None:
            self.lock.check()

    @property
    def token_ids(self) -> TokenIds:
        """The ids that the token layout relies on."""
        return self.parts.config.token_ids

    def train_loader(self) -> DataLoader[Batch]:
        """Endless batches of this process, from the position of `train_sampler`."""
        return data_loader(self.data.train, self.config, self.collator, sampler=self.train_sampler)

    def parts_at(self, step: int) -> PolicyParts:
        """The policy as it stands after `step` optimizer steps; its provenance says so."""
        provenance = {**self.parts.spec.provenance, "step": step}
        return replace(self.parts, spec=replace(self.parts.spec, provenance=provenance))

    def summary(self) -> str:
        """One line that says what is trained on what."""
        model, spec = self.parts.model, self.parts.spec
        total = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        val = "" if self.data.val is None else f", {len(self.data.val):,} for validation"
        return (
            f"{len(self.data.train):,} samples of {self.config.data.dataset_name}{val}; platform {spec.platform.name}, "
            f"cameras {', '.join(spec.cameras)}; {trained / 1e6:.2f} of {total / 1e6:.2f} M parameters trained "
            f"on {self.ranks.world_size} x {self.ranks.device.type}"
        )


def prepare_run(config: FinetuneConfig, ranks: Ranks) -> Run:
    """Data, model and sampler of the run that `config` describes.

    Raises:
        ValueError: unknown names, missing files, dimensions that contradict each other; each names the flag or file to change.
    """
    specs, cameras, command = on_all(lambda: _resolve_names(config, ranks), ranks)
    resumed = on_main(lambda: open_run(config, ranks.world_size), ranks)
    names = [spec.name for spec in specs]
    if resumed is not None:
        on_main(lambda: check_robot(resumed, specs[0].platform, cameras, config.model.use_proprio), ranks)
    origin = on_main(lambda: find_origin(config, specs[0].platform, cameras, names, resumed), ranks)
    model_config = on_all(lambda: load_config(origin.base_path), ranks)
    image_size = model_config.image_size
    on_main(lambda: check_disk(config, num_parameters(model_config)), ranks)
    data = on_all(lambda: _prepare_data(specs, _dataset_options(config, cameras, image_size), origin, config, ranks), ranks)
    sampler = data.train.sampler(config.optimization.seed, ranks.rank, ranks.world_size)
    check_alike(data, ranks)
    if resumed is not None:
        on_main(lambda: check_data(resumed, data), ranks)
        on_all(lambda: sampler.load_state_dict(dict(resumed.state.sampler)), ranks)
    record = dict(origin.record) | (on_main(lambda: account_for_statistics(data, origin), ranks) if resumed is None else {})
    if ranks.is_main:
        for name, finding in (*quick_checks(data, specs, origin.kept), *_compare_with_earlier(data, specs, origin.told)):
            logger.warning("%s: %s", name, finding)
        for told in doubtful_validation(origin.told, data) if origin.continuation is not None and resumed is None else ():
            logger.warning(told)
    base_path = known_anywhere(origin.base_path)
    base_folder = _download(origin.base_path, ranks)
    base_files = on_all(lambda: describe_base(base_folder), ranks)
    check_same_base(base_files, ranks)
    spec = PolicySpec(
        platform=specs[0].platform,
        cameras=cameras,
        image=ImageRecipe(size=image_size, jpeg_round_trip=True, center_crop=config.data.image_aug),
        unnorm_key=specs[0].name if len(specs) == 1 else None,
        heads=config.model.heads,
        lora=config.model.lora,
        prompt=model_config.token_ids.prompt_template,
        base_model=base_path if config.model.use_lora and not config.saving.merge_lora_during_training else None,
        base_files=base_files if config.model.use_lora else {},
        demonstrated=data.demonstrated,
        provenance=_provenance(config, base_path, ranks) | _about_data(data) | ({"continued": record} if record else {}),
    )
    parts, skeleton = _load_model(config, spec, base_folder, origin.continuation, data, ranks)
    return Run(
        config=config,
        ranks=ranks,
        parts=parts,
        data=data,
        train_sampler=sampler,
        collator=Collator(parts.processor.tokenizer, parts.config.token_ids),
        autocast=uses_bf16(config, ranks),
        base_path=base_path,
        base_folder=base_folder,
        base_files=base_files,
        episodes=describe_episodes(data) if ranks.is_main else {},
        started_from=known_anywhere(config.model.vla_path) if resumed is None else str(resumed.state.flags.get("started_from", base_path)),
        eval_command=command,
        resumed=resumed,
        skeleton=skeleton,
    )


def _dataset_options(config: FinetuneConfig, cameras: tuple[str, ...], image_size: int) -> DatasetOptions:
    return DatasetOptions(
        cameras=cameras,
        image_size=image_size,
        use_proprio=config.model.use_proprio,
        augment=config.data.image_aug,
        published_tail=config.data.published_tail,
        published_crop=config.data.published_crop,
        published_statistics=config.data.published_statistics,
        seed=config.optimization.seed,
        val_fraction=config.evaluation.val_fraction if config.evaluation.use_val_set else None,
        default_instruction=config.data.default_instruction,
        augmentation=config.data.augmentation,
        paraphrases=config.data.paraphrases,
        device_augmentation=config.data.device_augmentation,
        frame_cache_dir=config.data.frame_cache_dir,
        exclude_episodes=config.data.exclude_episodes,
        episode_weights=config.data.episode_weights,
    )


def _load_model(
    config: FinetuneConfig, spec: PolicySpec, base_folder: Path, continuation: Continuation | None, data: TrainingData, ranks: Ranks
) -> tuple[PolicyParts, ActionModel | None]:
    """The policy in training, on its device, and its skeleton if it is sharded."""
    torch.manual_seed(config.optimization.seed)  # adapters and heads start the same on every process
    use_bf16 = uses_bf16(config, ranks)
    dtype = torch.bfloat16 if use_bf16 and config.model.use_lora else torch.float32
    has_weights = ranks.is_main or config.model.quantize_base != "none"
    base = on_all(lambda: load_base(base_folder, dtype, with_weights=has_weights), ranks)
    model = on_all(lambda: _build_model(base, spec, config, ranks, continuation if ranks.is_main else None), ranks)
    _prepare_blocks(model, config, ranks)
    reference = make_reference(data.train) if ranks.is_main else None
    parts = PolicyParts(model, base.vla.config, base.processor, spec, data.statistics, reference)
    compute_dtype = torch.bfloat16 if use_bf16 and not config.model.use_lora else None
    wait_for_all(ranks)  # quantizing takes some processes longer than others
    skeleton = place(parts.model, ranks, config.shards_model, compute_dtype)
    if uses_compiler(config, ranks) and skeleton is None:
        stack_projections(parts.model.bare_vla)
    torch.manual_seed(config.optimization.seed + ranks.rank)  # dropout differs between processes
    return parts, skeleton


def _download(name_or_path: str, ranks: Ranks) -> Path:
    """The whole folder of the base model on this node; of a model on the Hub one process of each node downloads it for the others."""
    is_first = ranks.rank % ranks.local_world_size == 0
    on_all(lambda: resolve_folder(name_or_path) if is_first else None, ranks)
    return on_all(lambda: resolve_folder(name_or_path, is_here=True), ranks)


def _resolve_names(config: FinetuneConfig, ranks: Ranks) -> tuple[tuple[DatasetSpec, ...], tuple[str, ...], str | None]:
    """Data sets, cameras and evaluation command that the flags name; nothing is read yet."""
    data = config.data
    specs = resolve_datasets(data.dataset_name, data.data_root_dir, data.robot_platform, config.model.use_proprio, data.stride)
    check_shardable(config, ranks)
    check_frozen_base(config.model.quantize_base, ranks.device)
    cameras = select_policy_cameras(specs, config.model.num_images_in_input)
    for spec in specs:
        if unused := unused_parts(spec, cameras, config.model.use_proprio):
            flags = f"--num_images_in_input {len(cameras)}, --use_proprio {config.model.use_proprio}"
            logger.info("data set %s also has %s, which the policy will not see (%s)", spec.name, ", ".join(unused), flags)
    return specs, cameras, eval_command(config, specs[0].platform.name)


def unused_parts(spec: DatasetSpec, cameras: Sequence[str], use_proprio: bool) -> list[str]:
    """What the data set's entry has and the run leaves out: cameras, "a state"."""
    left_out = [slot for slot in spec.entry.cameras if slot not in cameras]
    return [*left_out, *(["a state"] if any(spec.entry.state_obs_keys) and not use_proprio else [])]


def _prepare_data(
    specs: Sequence[DatasetSpec], options: DatasetOptions, origin: Origin, config: FinetuneConfig, ranks: Ranks
) -> TrainingData:
    """The data of the run, with what has to be read or decoded once before training: it may take hours."""
    data = load_training_data(specs, options, origin.statistics)
    node, rank = divmod(ranks.rank, ranks.local_world_size)
    fill_sequential_caches(data, config.data.num_workers, NodeShare(rank, ranks.local_world_size, node, ranks.num_nodes))
    return data


def _compare_with_earlier(data: TrainingData, specs: Sequence[DatasetSpec], folder: Path) -> list[tuple[str, Finding]]:
    """What in the data differs from what the model in `folder` was fine-tuned on, if it says so, with the data set's name."""
    found: list[tuple[str, Finding]] = []
    for view in training_views(data, specs):
        training = read_training(folder, view.platform.name, view.name)
        found += [] if training is None else [(view.name, finding) for finding in check_against(view, *training)]
    return found


def _build_model(base: BaseModel, spec: PolicySpec, config: FinetuneConfig, ranks: Ranks, continuation: Continuation | None) -> ActionModel:
    """The base with adapters (or fully trainable), then FiLM, and new float32 heads; what cannot matter, or must not change, is frozen."""
    vla: torch.nn.Module = base.vla
    if continuation is not None:
        continuation.fill_towers(base.vla)
    quantize_frozen_base(base.vla, config.model.quantize_base, ranks.device, next(base.vla.parameters()).dtype)
    if spec.lora is not None:
        vla = add_lora(base.vla, spec.lora)
        for parameter in vla.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if continuation is not None:
            continuation.fill_adapters(vla)
    for part in config.model.frozen_parts:  # before FiLM, whose layers are new and must learn even where the towers do not
        module = base.vla.get_submodule(part).requires_grad_(False)
        if spec.lora is None and uses_bf16(config, ranks):
            module.to(torch.bfloat16)
    if spec.heads.use_film:
        base.vla.add_film()
    base.vla.freeze_unused(uses_lm_head=spec.heads.action_head == "discrete")
    model = build_action_model(vla, base.vla.config, spec)
    if continuation is not None:
        continuation.fill_film(base.vla)
        continuation.fill_heads(model)
    if config.model.freeze_heads:
        for name, module in model.named_children():
            if name != "vla":
                module.requires_grad_(False)
    return model


def _prepare_blocks(model: ActionModel, config: FinetuneConfig, ranks: Ranks) -> None:
    """Compiles the model's blocks, or has them computed again in the backward pass, where that is wanted."""
    if uses_compiler(config, ranks):
        torch._functorch.config.activation_memory_budget = activation_memory_budget(config)
        compile_blocks(model.bare_vla)
    elif config.speed.gradient_checkpointing:
        model.bare_vla.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": config.model.lora_dropout > 0})


def activation_memory_budget(config: FinetuneConfig) -> float:
    """Share of a compiled block's activations to keep: with checkpointing its inputs alone; all where dropout could be drawn twice."""
    if config.speed.gradient_checkpointing:
        return 0.0
    return config.speed.activation_memory_budget if config.model.lora_dropout == 0 else 1.0


def uses_bf16(config: FinetuneConfig, ranks: Ranks) -> bool:
    """Whether the run computes in bfloat16."""
    return config.speed.precision == "bf16" or (config.speed.precision == "auto" and ranks.device.type == "cuda")


def uses_compiler(config: FinetuneConfig, ranks: Ranks) -> bool:
    """Whether the model's blocks are compiled; every process must ask."""
    return compiler_obstacle(config, ranks) is None


def compiler_obstacle(config: FinetuneConfig, ranks: Ranks) -> str | None:
    """Why the model's blocks are not compiled; None if they are: on GPUs with a compiler; those of a sharded model only if asked for.

    Every process must ask; all compile, or none.
    """
    if config.speed.compile != "auto":
        return None if config.speed.compile == "True" else "--compile False"
    obstacles = {
        "there is no CUDA device": ranks.device.type != "cuda",
        "the model is sharded; --compile True tries it": ranks.world_size > 1 and config.shards_model,
        "--gradient_checkpointing with --lora_dropout": config.recomputes_dropout,
        NO_COMPILER: not has_compiler(),
    }
    own = next((reason for reason, is_there in obstacles.items() if is_there), None)
    return (own or "another process cannot") if any_rank(own is not None, ranks) else None


def _about_data(data: TrainingData) -> dict[str, object]:
    """What the readers left out or mended, what the user left out, and how pictures were rendered, for policy.json."""
    mended = {name: [str(repair) for repair in repairs] for name, repairs in data.repairs.items() if repairs}
    excluded = {name: list(episodes) for name, episodes in data.excluded.items() if episodes}
    said = (
        ("repairs", mended),
        ("excluded_episodes", excluded),
        ("episode_weights", data.weights),
        ("step_weights", data.step_weights),
        ("rendered", data.rendered),
        ("paraphrased", list(data.paraphrased) if data.paraphrased[0] else []),
    )
    return {name: found for name, found in said if found}


def _provenance(config: FinetuneConfig, base_path: str, ranks: Ranks) -> dict[str, object]:
    """How the run was started and with what, for policy.json."""
    return {
        "command": shlex.join(sys.argv),
        "run_id": config.run_id,
        "vla_path": base_path,  # whose weights the run's adapters change; the flag of a resumed run may name one of its own checkpoints
        "dataset_name": config.data.dataset_name,
        "num_processes": ranks.world_size,
        "seed": config.optimization.seed,
        **({} if config.model.quantize_base == "none" else {"quantize_base": config.model.quantize_base}),
        "frozen": [*config.model.frozen_parts, *(["heads"] if config.model.freeze_heads else [])],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
