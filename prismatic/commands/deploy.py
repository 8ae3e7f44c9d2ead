"""Serves a checkpoint on one port to OpenVLA(-OFT), openpi and vla-eval clients.

    python vla-scripts/deploy.py --pretrained_checkpoint runs/my-run--10000_chkpt
    python vla-scripts/deploy.py --adapters bowls=runs/bowls--5000_chkpt,cups=runs/cups--5000_chkpt

The checkpoint describes itself; the familiar flags are needed only for a published one, which does not.
"""

from __future__ import annotations

import gc
import logging
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prismatic.cli import run_script
from prismatic.policy.checkpoint.flags import PolicyFlags

if TYPE_CHECKING:
    from prismatic.policy.checkpoint.loading import LoadOptions
    from prismatic.policy.policy import Policy
    from prismatic.serving.service import ServiceOptions

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_POSITIVE = ("max_body_mb", "max_queue", "max_batch_size", "max_latency_ms", "request_timeout_s", "shutdown_timeout_s", "max_connections")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeployConfig(PolicyFlags):
    """Serves a checkpoint, or adapters over one base model."""

    # Policy
    pretrained_checkpoint: str = ""  # folder or Hub id
    adapters: str = ""  # instead: name=folder,name=folder,... of LoRA runs over one base model; ?adapter=name chooses, the first by default
    base_model: str | None = None  # of the adapters, where their own note of it is not valid here
    unnorm_key: str | None = None  # data set whose statistics count, of adapters where they have it; needed where there are several
    device: str | None = None  # cuda, cuda:1, cpu; a GPU if there is one
    quantization: str = "none"  # see prismatic/policy/inference/quantization.py; fp8 is the fastest
    load_in_8bit: bool = False  # the same as --quantization int8
    load_in_4bit: bool = False  # the same as --quantization nf4
    engine: str = "auto"  # auto: compiled CUDA graphs on a GPU, else eager (plainly); compiled: on a CPU, too; graph: without a compiler
    robosuite_gripper: bool = True  # openpi and vla-eval clients of a LIBERO policy get -1 open, +1 close, as the simulator takes it

    num_open_loop_steps: int | None = None  # so many first actions of each chunk are sent, for clients that execute all they get
    seed: int | None = None  # of a diffusion policy's noise
    model_family: str = "openvla"  # nothing else is known; accepted because the familiar commands pass it
    use_relative_actions: bool = False  # the policy's actions are changes of the joint angles, though their names do not say so

    # Address
    host: str = "127.0.0.1"  # 0.0.0.0: reachable from other machines; then set an API key
    port: int = 8777  # 0: any free one
    api_key_file: Path | None = None  # file with the key that clients must send; else the environment variable PRISMATIC_API_KEY, if set

    # Load
    max_body_mb: float = 32  # MB of one request
    max_queue: int = 64  # requests being decoded, waiting or predicted; more get 503
    max_batch_size: int = 16  # observations in one call of the policy, at most
    max_latency_ms: float = 250  # batches grow, if that gives more answers per second, while two of them take no longer
    batch_window_ms: float = 4  # the longest that a free policy waits for requests that are being read
    request_timeout_s: float = 30  # a request unanswered for so long gets 504; a call of the policy that lasts longer counts as hanging
    shutdown_timeout_s: float = 30  # for answering what has been accepted, after SIGTERM
    max_connections: int = 512  # sockets open at once; idle ones make room for others
    exit_on_cuda_error: bool = False  # end with status 75 when the GPU is lost, so that a supervisor starts the server anew

    def __post_init__(self) -> None:
        if bool(self.pretrained_checkpoint) == bool(self.adapters):
            found = "both given" if self.adapters else "missing"
            raise ValueError(
                f"--pretrained_checkpoint and --adapters are {found}; pass the checkpoint's folder, or name=folder,... of adapters"
            )
        if self.model_family != "openvla":
            raise ValueError(f"--model_family is {self.model_family!r}; the only one is openvla")
        if self.num_open_loop_steps is not None and self.num_open_loop_steps < 1:
            raise ValueError(f"--num_open_loop_steps is {self.num_open_loop_steps}, must be at least 1")
        _ = self.adapter_folders  # parsed now, so that a mistake shows before minutes of loading
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} is {getattr(self, name)}, must be more than 0 and finite")
        if not 0 <= self.batch_window_ms <= 1000:
            raise ValueError(f"--batch_window_ms is {self.batch_window_ms:g}, must be 0 to 1000")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port is {self.port}, must be 0 to 65535")

    @property
    def adapter_folders(self) -> dict[str, str]:
        """Name -> folder.

        Raises:
            ValueError: the text is not made of name=folder, or names one twice.
        """
        pairs = [item.partition("=") for item in self.adapters.split(",") if item]
        folders = {name.strip(): folder.strip() for name, _, folder in pairs}
        if len(folders) < len(pairs) or not all(folders) or not all(folders.values()):
            raise ValueError(f"--adapters is {self.adapters!r}; expected name=folder,name=folder,... with names that differ")
        return folders

    def chosen_quantization(self) -> str:
        """What --quantization or the familiar flags ask for.

        Raises:
            ValueError: they contradict each other.
        """
        from prismatic.policy.inference.quantization import choose_quantization

        return choose_quantization(self.load_in_8bit, self.load_in_4bit, self.quantization)

    @property
    def flags(self) -> PolicyFlags:
        return PolicyFlags(**{item.name: getattr(self, item.name) for item in fields(PolicyFlags)})


def deploy(config: DeployConfig) -> None:
    """Loads the policy and serves it until SIGTERM or Ctrl-C."""
    try:
        import msgpack  # noqa: F401  (needed once a robot asks)

        from prismatic.serving.address import open_socket
        from prismatic.serving.server import ServerOptions, serve
    except ModuleNotFoundError as error:
        raise ValueError(f"the package {error.name} is missing; pip install 'openvla-oft-robot[serve]'") from error
    from prismatic.policy.checkpoint.loading import LoadOptions, chunk_length
    from prismatic.serving.service import PolicyService

    options = _service_options(config)
    bound = open_socket(config.host, config.port)  # before minutes of loading
    for checkpoint in config.adapter_folders.values() or [config.pretrained_checkpoint]:
        if length := chunk_length(checkpoint):
            options.check_chunk(length)
    load_options = LoadOptions(
        flags=config.flags,
        quantization=config.chosen_quantization(),
        engine=config.engine,
        max_batch_size=config.max_batch_size,
        base_model=config.base_model,
    )
    policies = _load(config, load_options)
    service = PolicyService(policies, options)
    seconds = service.warm_up()
    gc.collect()
    gc.freeze()  # a collection amid requests would walk through all that torch has made: 0.3 s in which no robot is answered
    if config.host not in _LOOPBACK and options.api_key is None:
        logger.warning("anyone who reaches %s can use this policy: set PRISMATIC_API_KEY, or bind to 127.0.0.1", config.host)
    for name, policy in policies.items() if isinstance(policies, dict) else [("policy", policies)]:
        logger.info("%s: platform %s, cameras %s", name, policy.spec.platform.name, ", ".join(policy.spec.cameras))
    logger.info("warm-up %.2f s", seconds)
    bound.listen()
    host, port = bound.getsockname()[:2]
    logger.info(
        "serving on http://%s:%d: POST /act, websockets /policy (ours), / (openpi) and /vla-eval, GET /healthz /readyz /info /metrics",
        f"[{host}]" if ":" in host else host,
        port,
    )
    serve(service, bound, ServerOptions(config.max_connections, config.shutdown_timeout_s, config.exit_on_cuda_error))


def _service_options(config: DeployConfig) -> ServiceOptions:
    """How requests are answered.

    Raises:
        ValueError: the key cannot be read.
    """
    from prismatic.serving.batching import BatchingOptions
    from prismatic.serving.service import ServiceOptions
    from prismatic.wire.api_key import read_api_key

    return ServiceOptions(
        batching=BatchingOptions(config.max_batch_size, config.max_queue, config.batch_window_ms / 1e3, config.max_latency_ms / 1e3),
        max_body_bytes=int(config.max_body_mb * (1 << 20)),
        request_timeout_s=config.request_timeout_s,
        api_key=read_api_key(config.api_key_file),
        robosuite_gripper=config.robosuite_gripper,
        num_open_loop_steps=config.num_open_loop_steps,
        use_relative_actions=config.use_relative_actions,
        seed=config.seed,
    )


def _load(config: DeployConfig, options: LoadOptions) -> Policy | dict[str, Policy]:
    from prismatic.policy.lora.bank import load_adapter_policies
    from prismatic.policy.policy import Policy, default_device, default_dtype

    if not config.adapters:
        return Policy.from_pretrained(config.pretrained_checkpoint, config.device, unnorm_key=config.unnorm_key, options=options)
    device = default_device(config.device)
    options = replace(options, unnorm_key=config.unnorm_key)
    return load_adapter_policies(config.adapter_folders, device, default_dtype(device), options)


def run() -> None:
    """Entry point."""
    run_script(deploy, DeployConfig)
