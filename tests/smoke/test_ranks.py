"""Processes of one run agree on how a step is computed, wait for the slow ones, and leave together when one of them fails."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from launching import Launcher, wait_until
from safetensors.torch import load_file, save_file
from survival import FINETUNE, flags, free_port, make_workplace, rows, start_processes, wait_for, write_script

# Four GPUs in two sockets, without a link between the sockets, that exchange a gradient as they decided.
DECIDE = """
import json, pathlib, torch
import torch.distributed as dist
from dataclasses import replace
from prismatic.training.capture import uses_cuda_graphs
from prismatic.training.config import FinetuneConfig
from prismatic.training.distributed import process_group
torch.cuda.device_count = lambda: 4
torch.cuda.can_device_access_peer = lambda one, other: LINKED(one.index, other)
with process_group() as ranks:
    on_gpu = replace(ranks, device=torch.device("cuda", int(os.environ["LOCAL_RANK"])))
    answer = uses_cuda_graphs(FinetuneConfig.from_flags(compile="False"), on_gpu)
    gradient = torch.tensor([float(rank)])
    dist.all_reduce(gradient) if answer else [dist.all_reduce(part) for part in (gradient, gradient.clone())]
    found = [answer, gradient.item(), ranks.num_nodes, ranks.local_world_size]
    pathlib.Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def launcher(workplace: Path) -> Launcher:
    return Launcher(workplace)


def decide(launcher: Launcher, folder: Path, linked: str, places: list[Mapping[str, str]]) -> list[list[float]]:
    """What each of four processes found, of which GPUs i and j are linked where `linked` says so."""
    script = write_script(folder, "decide", DECIDE.replace("LINKED", f"(lambda i, j: {linked})"))
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "4"}
    processes = [launcher.start([str(folder)], {**common, "RANK": str(rank), **place}, script=script) for rank, place in enumerate(places)]
    wait_for(processes)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(4)]


def test_four_gpus_with_links_inside_a_socket_only_decide_alike(launcher: Launcher, tmp_path: Path) -> None:
    """Asked about its neighbour alone, each process answered for itself: True, False, True, False."""
    places = [{"LOCAL_RANK": str(rank)} for rank in range(4)]
    assert decide(launcher, tmp_path, "i // 2 == j // 2", places) == [[False, 6.0, 1, 4]] * 4
    assert decide(launcher, tmp_path, "(i, j) != (2, 0)", places) == [[False, 6.0, 1, 4]] * 4  # one process alone speaks against it
    assert decide(launcher, tmp_path, "True", places) == [[True, 6.0, 1, 4]] * 4


def test_nodes_are_those_of_torchrun(launcher: Launcher, tmp_path: Path) -> None:
    """Two nodes with two processes each count as two, however many GPUs a node has; their steps are recorded only if asked for."""
    places = [{"LOCAL_RANK": str(rank % 2), "GROUP_RANK": str(rank // 2)} for rank in range(4)]
    assert decide(launcher, tmp_path, "True", places) == [[False, 6.0, 2, 2]] * 4


SHORT = """
import datetime
import torch.distributed.distributed_c10d as c10d
c10d.default_pg_timeout = datetime.timedelta(seconds=5)
"""
SLOW = """
import prismatic.training.setup as setup
original = setup.{name}
def slow(*arguments, **options):
    if rank == {rank}:
        print("napping", flush=True)
        time.sleep(8)
    return original(*arguments, **options)
setup.{name} = slow
"""


@pytest.mark.parametrize(("name", "rank"), [("load_training_data", 1), ("load_base", 0)])
def test_a_slow_process_is_waited_for(launcher: Launcher, workplace: Path, name: str, rank: int) -> None:
    """Longer than messages may take: an index on a cold disk on one node, weights that only the first process reads."""
    script = write_script(workplace, f"slow_{name}", SHORT, SLOW.format(name=name, rank=rank), FINETUNE)
    processes = start_processes(launcher, flags(workplace, name, "--max_steps", "2"), [workplace] * 2, script)
    wait_for(processes)
    assert [row["step"] for row in rows(workplace / name / "run")] == [1, 2]


SLOW_DISK = """
naps = set()
def nap(what):  # once each
    if what not in naps:
        time.sleep(8)
    naps.add(what)
import prismatic.training.checkpoint as checkpoint
from safetensors import safe_open
class SlowFile:
    def __init__(self, *arguments):
        self.file = safe_open(*arguments)
    def __enter__(self):
        self.opened = self.file.__enter__()
        return self
    def __exit__(self, *arguments):
        return self.file.__exit__(*arguments)
    def __getattr__(self, name):
        return getattr(self.opened, name)
    def get_tensor(self, name):
        nap("read")
        return self.opened.get_tensor(name)
original = checkpoint.write_tensors
def slowly(tensors):
    for tensor in tensors:
        nap("write")
        yield tensor
checkpoint.safe_open = SlowFile
checkpoint.write_tensors = lambda path, like, tensors, numbers: original(path, like, slowly(tensors), numbers)
"""


def test_a_checkpoint_may_take_longer_to_write_and_read_than_a_message(launcher: Launcher, workplace: Path) -> None:
    script = write_script(workplace, "disk", SHORT, SLOW_DISK, FINETUNE)
    for last in ("2", "4"):
        more = ("--strategy", "fsdp", "--auto_resume", "True", "--max_steps", last)
        wait_for(start_processes(launcher, flags(workplace, "disk", *more), [workplace] * 2, script))
    assert [row["step"] for row in rows(workplace / "disk" / "run")] == [1, 2, 3, 4]


def test_a_process_that_dies_ends_the_others_at_once_in_one_line(launcher: Launcher, workplace: Path) -> None:
    script = write_script(workplace, "dies", SLOW.format(name="load_training_data", rank=1).replace("(8)", "(600)"), FINETUNE)
    waiting, dying = start_processes(launcher, flags(workplace, "dies", "--max_steps", "2"), [workplace] * 2, script)
    wait_until(lambda: "napping" in dying.text())
    dying.kill(signal.SIGKILL)
    assert dying.wait() == -signal.SIGKILL
    assert waiting.wait(30) == 1, waiting.text()
    assert "error: process 0 lost another process of this run" in waiting.text()
    assert "Traceback" not in waiting.text()


def test_a_mistake_that_all_processes_see_is_reported_once(launcher: Launcher, workplace: Path) -> None:
    processes = start_processes(launcher, flags(workplace, "told", "--dataset_name", "libero_spatial_no_noop"), [workplace] * 2)
    wait_for(processes, 2)
    text = "".join(process.text() for process in processes)
    assert text.count("did you mean libero_spatial_no_noops") == 1
    assert "Traceback" not in text


def test_what_one_process_lacks_ends_all_and_is_reported_there(launcher: Launcher, workplace: Path, tmp_path: Path) -> None:
    """As on a node without the data."""
    arguments = [word.replace(f"{workplace}/data", "data") for word in flags(workplace, "lacks")]
    processes = start_processes(launcher, arguments, [workplace, tmp_path])
    wait_for(processes, 2)
    assert "error" not in processes[0].text()
    assert "Traceback" not in processes[1].text()
    assert "error: " in processes[1].text()


def test_nodes_with_other_episodes_are_told_apart(launcher: Launcher, workplace: Path, tmp_path: Path) -> None:
    """As with a file, or a copy of the data, that is old on one of them; there are as many samples on both."""
    for place, episode in ((workplace, "train 0"), (tmp_path, "train 1")):
        (place / "excluded.txt").write_text(f"{episode}\n")
    arguments = flags(workplace, "unlike", "--exclude_episodes", "excluded.txt")
    processes = start_processes(launcher, arguments, [workplace, tmp_path])
    wait_for(processes, 2)
    text = "".join(process.text() for process in processes)
    assert text.count("error: process 1 has other episodes of libero_spatial_no_noops than process 0; copy data and the file of") == 1
    assert "Traceback" not in text


def test_a_node_with_another_command_is_told_apart(launcher: Launcher, workplace: Path) -> None:
    """Another seed or learning rate on one of them trained on, silently; with more steps to take it waited for the others for ever."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    own = (("--num_workers", "0"), ("--seed", "8", "--max_steps", "3", "--num_workers", "1"))
    processes = [
        launcher.start([*flags(workplace, "command"), *more], {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, workplace)
        for rank, more in enumerate(own)
    ]
    wait_for(processes, 2)
    told = "error: process 1 was started with --max_steps 3 instead of 10000, --seed 8 instead of 7 of process 0; "
    told += "start all processes with the same flags"
    assert "".join(process.text() for process in processes).count(told) == 1
    assert not (workplace / "command").exists()


OTHER_CODE = """
import pathlib, shutil
from prismatic.training import alike
if rank == 1:
    copy = pathlib.Path(shutil.copytree(pathlib.Path(alike.__file__).parents[1], "installed/prismatic"))
    with (copy / "training" / "objectives.py").open("a") as file:
        file.write("# an older one")
    alike.__file__ = str(copy / "training" / "alike.py")
"""


def test_a_node_with_other_code_is_told_apart(launcher: Launcher, workplace: Path, tmp_path: Path) -> None:
    script = write_script(workplace, "other_code", OTHER_CODE, FINETUNE)
    processes = start_processes(launcher, flags(workplace, "code"), [workplace, tmp_path], script)
    wait_for(processes, 2)
    told = "error: process 1 runs other code than process 0: prismatic/training/objectives.py; install the same version on every node"
    assert "".join(process.text() for process in processes).count(told) == 1


def test_a_node_with_another_base_is_told_apart(launcher: Launcher, workplace: Path, tmp_path: Path) -> None:
    """Weights come from the first process; a quantized base is made by each from its own, and processors from whatever lies there."""
    arguments = [word.replace(f"{workplace}/base", "base") for word in flags(workplace, "based")]
    shutil.copytree(workplace / "base", tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    weights = {name: value + 1 for name, value in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})
    processes = start_processes(launcher, arguments, [workplace, tmp_path])
    wait_for(processes, 2)
    told = "error: process 1 has another base model than process 0: model.safetensors; copy --vla_path to every node"
    assert "".join(process.text() for process in processes).count(told) == 1


# Says what is left of a run when the connections between its processes are closed.
LEFT = """
import gc, multiprocessing
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter
from prismatic.training.capture import CapturedPass
original = dist.destroy_process_group
def destroy():
    kinds = (DistributedDataParallel, DataLoader, CapturedPass)
    alive = [type(item).__name__ for item in gc.get_objects() if type(item) in kinds or issubclass(type(item), _BaseDataLoaderIter)]
    print(f"left: {alive}, {multiprocessing.active_children()}", flush=True)
    original()
dist.destroy_process_group = destroy
"""


def test_connections_are_closed_last(launcher: Launcher, workplace: Path) -> None:
    script = write_script(workplace, "left", LEFT, FINETUNE)
    more = ("--max_steps", "2", "--num_workers", "1", "--use_val_set", "True", "--val_freq", "1")
    processes = start_processes(launcher, flags(workplace, "left", *more), [workplace] * 2, script)
    wait_for(processes)
    assert [process.text().count("left: [], []") for process in processes] == [1, 1], processes[0].text()
