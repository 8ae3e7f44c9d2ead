"""Python, the packages and what they are for, and whether attention still looks both ways."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from prismatic.vla.diagnosis import Finding, Status

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement

    from prismatic.models.vla import OpenVLAForActionPrediction

PROJECT = "openvla-oft-robot"
_TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tensorflow-datasets")
TESTED_FILE = Path(__file__).parent / "constraints.txt"  # in a checkout a link to the one in the root
# Extra of pyproject.toml -> what it is for.
EXTRAS = {
    "rlds": "writing RLDS data sets (training reads them without TensorFlow)",
    "lerobot": "reading LeRobot data sets",
    "metaworld": "the demo and MetaWorld evaluation",
    "libero": "LIBERO evaluation",
    "aloha": "the simulated ALOHA robot",
    "serve": "the policy server and its clients",
    "quant": "4-bit and 8-bit models, 8-bit AdamW",
    "export": "ONNX files for small computers",
    "flash": "flash-attn, which is never needed",
    "wandb": "logging to Weights & Biases",
    "tensorboard": "logging to TensorBoard",
    "dev": "the tests",
}


def check_python() -> list[Finding]:
    """The interpreter, and whether the project is installed in it."""
    found = f"{platform.python_version()} in {sys.prefix}"
    try:
        metadata = importlib.metadata.metadata(PROJECT)
    except importlib.metadata.PackageNotFoundError:
        remedy = "Run pip install -e . in the checkout, with this Python."
        return [Finding("Python", Status.PROBLEM, f"{found}; {PROJECT} is not installed in it", remedy)]
    from packaging.specifiers import SpecifierSet

    supported = metadata["Requires-Python"]
    if not SpecifierSet(supported).contains(platform.python_version()):
        return [Finding("Python", Status.PROBLEM, f"{found}; supported: {supported}", "Make an environment with Python 3.11.")]
    in_virtual = sys.prefix != sys.base_prefix or (Path(sys.prefix) / "conda-meta").is_dir()
    if not in_virtual:
        remedy = "python3 -m venv .venv, or a conda environment, keeps other programs' packages apart."
        return [Finding("Python", Status.NOTE, f"{found}, the system's own interpreter", remedy)]
    return [Finding("Python", Status.OK, f"{found}; {PROJECT} {metadata['Version']}")]


def check_torch() -> list[Finding]:
    """That torch imports, and that it sees the GPU that the machine has."""
    import torch

    build = "a CPU build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
    found = f"{torch.__version__}, {build}"
    if torch.cuda.is_available():
        return [Finding("torch", Status.OK, f"{found}; sees {torch.cuda.device_count()} GPU(s)")]
    if not Path("/dev/nvidia0").exists():
        return [Finding("torch", Status.OK, f"{found}; no GPU here: enough for the demo and the tests, not to train or serve a 7B model")]
    remedy = (
        "Install a CUDA build, see SETUP.md: pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
        if torch.version.cuda is None
        else "The driver is too old for this build, or CUDA_VISIBLE_DEVICES hides the GPU: compare with nvidia-smi, then update the driver."
    )
    return [Finding("torch", Status.PROBLEM, f"{found}; does not see the NVIDIA GPU of this machine", remedy)]


def check_versions() -> list[Finding]:
    """Installed packages against the ranges that the project needs, then against the versions that it was tested with."""
    from packaging.version import Version

    needed = _requirements()
    installed = {name: version for item in needed if (version := installed_version(name := item.name)) is not None}
    wrong = [item for item in needed if item.name in installed and not item.specifier.contains(installed[item.name], prereleases=True)]
    missing = [item for item in needed if item.name not in installed and _extra_of(item) is None]
    findings = []
    if wrong or missing:
        found = [f"{item.name} {installed[item.name]} (needs {item.specifier})" for item in wrong] + [
            f"{item.name} is missing" for item in missing
        ]
        packages = dict.fromkeys(f'"{item.name}{item.specifier}"' for item in (*wrong, *missing))
        remedy = f"pip install {' '.join(packages)}"
        findings.append(Finding("versions", Status.PROBLEM, ", ".join(dict.fromkeys(found)), remedy))
    tested = tested_versions()
    known = {name: tested[_normal(name)] for name in installed if _normal(name) in tested}
    others = [
        f"{name} {installed[name]} (tested {expected})"
        for name, expected in known.items()
        if Version(installed[name]).release[:2] != Version(expected).release[:2]
    ]
    if others:
        remedy = "Should anything go wrong, try the tested versions first: pip install --constraint constraints.txt -e ."
        findings.append(Finding("versions", Status.WARNING, f"not as tested: {', '.join(others)}", remedy))
    if not findings:
        findings.append(Finding("versions", Status.OK, f"{len(known)} packages as tested"))
    return findings


def check_extras() -> list[Finding]:
    """Which extras are there, and what the others would add."""
    needed: dict[str, list[str]] = {}
    for item in _requirements():
        if (extra := _extra_of(item)) is not None:
            needed.setdefault(extra, []).append(item.name)
    complete = [extra for extra, names in needed.items() if all(installed_version(name) for name in names)]
    findings = [Finding("extras", Status.OK, f"installed: {', '.join(complete) or 'none'}")]
    absent = [extra for extra in EXTRAS if extra in needed and extra not in complete]
    if absent:
        found = "; ".join(f"[{extra}] {EXTRAS[extra]}" for extra in absent)
        findings.append(Finding("", Status.NOTE, f"not installed: {found}", f"pip install '{PROJECT}[NAME]' adds one, where you need it."))
    return findings


def check_tensorflow() -> list[Finding]:
    """What writing RLDS needs; nothing else does."""
    found = {name: version for name in _TENSORFLOW if (version := installed_version(name)) is not None}
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    if "tensorflow-datasets" in found and len(found) > 1:
        return [Finding("TensorFlow", Status.OK, f"{listed}: RLDS can be written")]
    remedy = f"To convert recordings to RLDS: pip install '{PROJECT}[rlds]'. Training does not need it."
    return [Finding("TensorFlow", Status.NOTE, listed or "not installed", remedy)]


def check_attention() -> list[Finding]:
    """The self-test of every load, on a tiny model, for every backend that runs here."""
    import torch

    from prismatic.models.attention import ATTENTION_BACKENDS
    from prismatic.models.self_test import check_bidirectional

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    passed, skipped = [], []
    for backend in ATTENTION_BACKENDS:
        if backend.startswith("flash_attention") and (device.type == "cpu" or importlib.util.find_spec("flash_attn") is None):
            skipped.append(backend)
            continue
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
                check_bidirectional(_tiny_model(backend, device, dtype))
        except ValueError as error:
            return [Finding("attention", Status.PROBLEM, str(error), "Install the versions of constraints.txt.")]
        passed.append(backend)
    rest = f"; not available here: {', '.join(skipped)} (optional)" if skipped else ""
    return [Finding("attention", Status.OK, f"looks both ways, tried on {device.type}: {', '.join(passed)}{rest}")]


def _tiny_model(backend: str, device: torch.device, dtype: torch.dtype) -> OpenVLAForActionPrediction:
    """A model with random weights, a second's work."""
    from torch import nn

    from prismatic.models.configuration import TinySizes, tiny
    from prismatic.models.vla import OpenVLAForActionPrediction

    sizes = TinySizes(image_size=16, patch_size=8, vision_dim=16, vision_layers=1, llm_dim=32, llm_layers=1, llm_mlp_dim=32)
    config = tiny(sizes, base_vocab_size=320, empty_token_id=10)
    config._attn_implementation = backend
    with device:
        return nn.Module.to(OpenVLAForActionPrediction(config), dtype=dtype)


def tested_versions() -> dict[str, str]:
    """Package -> the version in constraints.txt for this Python."""
    from packaging.requirements import Requirement

    lines = (line.partition("#")[0].strip() for line in TESTED_FILE.read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line]
    return {
        _normal(item.name): next(iter(item.specifier)).version for item in requirements if item.marker is None or item.marker.evaluate()
    }


def _requirements() -> list[Requirement]:
    """What the project needs on this platform, extras included."""
    from packaging.requirements import Requirement

    items = [Requirement(text) for text in importlib.metadata.requires(PROJECT) or []]
    return [item for item in items if item.marker is None or item.marker.evaluate({"extra": _extra_of(item) or ""})]


def _extra_of(item: Requirement) -> str | None:
    """The extra that an item of the project's requirements belongs to."""
    if item.marker is None or item.marker.evaluate({"extra": ""}):
        return None
    extras = importlib.metadata.metadata(PROJECT).get_all("Provides-Extra") or []
    return next((extra for extra in extras if item.marker.evaluate({"extra": extra})), None)


def installed_version(name: str) -> str | None:
    """Of the package called `name`; None: not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
