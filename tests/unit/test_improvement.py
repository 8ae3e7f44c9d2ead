"""scripts/improve.py without playing: its commands, when it stops, what it writes down."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from script_modules import load_script

from experiments.robot.evaluation.comparison import Comparison, PairedTable, TimeComparison
from experiments.robot.evaluation.journal import Journal
from experiments.robot.evaluation.rollout import EpisodeResult
from experiments.robot.improvement import rounds
from experiments.robot.improvement.config import METHODS, ImproveConfig
from experiments.robot.improvement.judging import Round, reason_to_stop
from experiments.robot.improvement.phases import DONE_FILE, collect_command, evaluate_command, run_phase, train_command
from experiments.robot.improvement.results import Results, write_results
from experiments.robot.metaworld.tasks import DEMO_TASKS, get_metaworld_task
from prismatic.cli_sections import flag_names
from prismatic.commands.inspect_dataset import InspectConfig
from prismatic.policy.checkpoint.spec import HeadSpec, LoraSpec, PolicySpec
from prismatic.training.config import FinetuneConfig
from prismatic.vla.constants import get_robot_platform
from prismatic.vla.datasets.hdf5.recording import Recording, read_recording, write_recording
from prismatic.vla.images import ImageRecipe

SPEC = PolicySpec(
    platform=get_robot_platform("METAWORLD"),
    cameras=("primary", "wrist"),
    image=ImageRecipe(size=28, jpeg_round_trip=True, center_crop=False),
    unnorm_key="metaworld_demo",
    heads=HeadSpec(action_head="diffusion", use_proprio=True, use_film=True, num_diffusion_steps_train=10),
    lora=LoraSpec(8),
    prompt="In: What action should the robot take to {instruction}?\nOut:",
)


def config_of(folder: Path, **changes: Any) -> ImproveConfig:
    (folder / "demos").mkdir(exist_ok=True)
    flags = {"pretrained_checkpoint": str(folder / "policy"), "demonstrations": [str(folder / "demos")], "output_dir": folder / "out"}
    return ImproveConfig(**flags | changes)


def flags_of(command: list[str]) -> dict[str, str]:
    return {name[2:]: value for name, value in zip(command[2::2], command[3::2], strict=True)}


@pytest.mark.parametrize("simulator", ["metaworld", "aloha", "libero"])
def test_every_command_has_flags_that_exist(simulator: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, simulator=simulator, task_names=["one"], image_size=64, fast_rendering=True)
    evaluate, collect = evaluate_command(config, "policy", tmp_path, 7, 3), collect_command(config, 2)
    train = train_command(config, 2, tmp_path / "manifest.json", SPEC)
    for command, known in (
        (evaluate, flag_names(load_script(evaluate[1]).EvalConfig)),
        (collect, flag_names(load_script(collect[1]).CollectConfig)),
        (train, flag_names(FinetuneConfig)),
    ):
        assert flags_of(command).keys() <= set(known), command[1]


def test_a_round_continues_the_one_before_with_the_heads_and_adapters_of_the_start(tmp_path: Path) -> None:
    config = config_of(tmp_path, finetune_flags="--lora_rank 4 --frame_cache_dir cache")
    first, second = (flags_of(train_command(config, number, tmp_path / "manifest.json", SPEC)) for number in (1, 2))
    assert first["vla_path"] == str(tmp_path / "policy")
    assert second["vla_path"] == str(tmp_path / "out" / "round_1" / "train")
    said = FinetuneConfig.from_flags(
        **{name: json.loads(second[name].lower()) for name in ("use_diffusion", "use_l1_regression", "use_film")}
    )
    assert (said.model.heads.action_head, said.model.use_film, second["num_images_in_input"]) == ("diffusion", True, "2")
    assert (second["num_diffusion_steps_train"], second["image_aug"], second["lora_rank"]) == ("10", "False", "4")
    seeds = [flags_of(collect_command(config, number))["seed"] for number in (1, 2)]
    assert len({*seeds, str(config.seed)}) == 3, "every round has starts of its own"
    assert {method: flags_of(collect_command(config_of(tmp_path, method=method), 1))["expert_help"] for method in METHODS} == {
        "relabel": "relabel",
        "takeover": "takeover",
        "filtered": "none",
    }


def test_the_benchmark_of_spoiled_demonstrations_spoils_what_it_says(tmp_path: Path) -> None:
    benchmark = load_script("benchmarks/spoiled.py")
    config = benchmark.SpoiledBenchmarkConfig(output_dir=tmp_path, seeds=[3], num_demonstrations=10)
    rng = np.random.default_rng(0)
    for task in DEMO_TASKS:
        for number in range(10):
            images = {"primary": np.full((8, 4, 4, 3), number, np.uint8)}
            told = get_metaworld_task(task).instruction
            recording = Recording(
                rng.normal(0, 0.1, (8, 4)).astype(np.float32), np.zeros((8, 4), np.float32), images, told, {"success": True}
            )
            write_recording(tmp_path / f"recordings/{task}/episode_{number:06d}.hdf5", recording)
    kinds = benchmark.spoil(config, 3)
    assert kinds == benchmark.spoil(config, 3)  # the same again, also where the files are there
    assert len(kinds) == 9
    assert set(kinds.values()) == set(benchmark.KINDS)
    listed = json.loads((tmp_path / "seed_3/clean.json").read_text())["recordings"]
    assert len(listed) == 21
    for name, kind in kinds.items():
        task, _, file = name.partition("_")
        before, after = read_recording(tmp_path / "recordings" / task / file), read_recording(tmp_path / "seed_3/recordings" / name)
        assert not any(task in item["path"] and item["path"].endswith(file) for item in listed)
        assert after.num_steps == (4 if kind == "half-way" else 8)
        assert (after.instruction != before.instruction) == (kind == "another task")
        assert np.array_equal(after.actions, before.actions[: after.num_steps]) == (kind != "noisy")
    for variant in benchmark.VARIANTS:
        _, *words = benchmark.train_command(config, 3, variant)
        assert {word[2:] for word in words[::2]} <= set(flag_names(FinetuneConfig))
    for script, *words in (benchmark.evaluate_command(config, 3, "clean"), benchmark.score_command(config, 3)):
        flags = load_script(script).EvalConfig if "eval" in script else InspectConfig
        assert {word[2:] for word in words[::2]} <= set(flag_names(flags))


@pytest.mark.parametrize(
    ("script", "config", "other"),
    [
        ("benchmarks/spoiled.py", "SpoiledBenchmarkConfig", {"noise_scale": 0.4}),
        ("benchmarks/improvement.py", "ImprovementBenchmarkConfig", {"start_steps": 3}),
    ],
)
def test_a_benchmark_does_not_go_on_with_policies_of_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, config: str, other: dict[str, Any]
) -> None:
    benchmark = load_script(script)

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt  # before anything is recorded or trained

    monkeypatch.setattr(benchmark, "run", stop)
    wanted = getattr(benchmark, config)(output_dir=tmp_path)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            benchmark.main(dataclasses.replace(wanted, num_trials=3))
    with pytest.raises(ValueError, match=rf"with other flags \(--{next(iter(other))} was .*; choose another --output_dir"):
        benchmark.main(dataclasses.replace(wanted, **other))


def test_the_benchmark_compares_methods_that_exist_with_flags_that_exist(tmp_path: Path) -> None:
    benchmark = load_script("benchmarks/improvement.py")
    config = benchmark.ImprovementBenchmarkConfig(output_dir=tmp_path, seeds=[3])
    record, start = benchmark.record_command(config), benchmark.start_command(config, 3, tmp_path / "manifest.json")
    for (script, *words), known in (
        (record, flag_names(load_script(record[0]).RecordConfig)),
        (start, flag_names(FinetuneConfig)),
        (benchmark.improve_command(config, 3, "filtered"), flag_names(ImproveConfig)),
    ):
        assert {word[2:] for word in words[::2]} <= set(known), script
    with pytest.raises(ValueError, match="--methods names 'takover'; did you mean takeover"):
        benchmark.ImprovementBenchmarkConfig(methods=["takover", "filtered"])
    times = TimeComparison(1.0, 1.0, 0.0, 1.0)
    seeds = [
        Comparison("a", "b", {"push": table}, [], 0, {}, times, num_crashed=crashed)
        for table, crashed in ((BETTER, (0, 2)), (SAME, (1, 0)))
    ]
    row = benchmark.describe_pair("takeover - filtered", [dataclasses.replace(seed, num_crashed=(0, 0)) for seed in seeds])
    assert row["line"] == "| takeover - filtered | 66 % (53/80, 55-76) | 59 % (47/80, 48-69) | +8 points (-4 to +18) | 0.263 |"
    row = benchmark.describe_pair("takeover - filtered", seeds)
    assert row["num_crashed"] == [1, 2]
    assert row["line"].startswith("| takeover - filtered (crashed: 1 and 2) | 66 % ")


RESULT = {"run": "none", "task": "push", "seed": 7, "instruction": "push", "success": False, "num_queries": 1, "latency_ms": None}


def make_round(number: int, successes: int, against_best: PairedTable | None = None) -> Round:
    return Round(number, f"round_{number}/train", Path("eval"), successes, 40, against_best, 20, 9, 60.0)


BETTER, SAME, WORSE = PairedTable(20, 8, 2, 10), PairedTable(20, 5, 5, 10), PairedTable(10, 0, 18, 12)
MAYBE_WORSE = (PairedTable(0, 0, 3, 0), PairedTable(20, 0, 5, 15))  # p 0.25 and 0.06, intervals below 0


def test_it_stops_when_a_round_no_longer_helps() -> None:
    start = make_round(0, 22)
    assert reason_to_stop([start], 3, 1) is None
    assert reason_to_stop([start, make_round(1, 28, BETTER)], 3, 1) is None
    assert reason_to_stop([start, make_round(1, 28, BETTER)], 1, 1) == "1 round was wanted"
    lost = [start, make_round(1, 28, BETTER), make_round(2, 25, SAME)]
    assert reason_to_stop(lost, 3, 1) == "1 round in a row did not solve more than the best policy before"
    assert reason_to_stop(lost, 3, 2) is None
    assert reason_to_stop([*lost, make_round(3, 25, SAME)], 9, 2) == "2 rounds in a row did not solve more than the best policy before"
    assert reason_to_stop([start, make_round(1, 10, WORSE)], 3, 2) == "the last round is surely worse than the best policy before it"
    for table in MAYBE_WORSE:
        assert table.interval[1] < 0
        assert reason_to_stop([start, make_round(1, 17, table)], 3, 2) is None
    assert reason_to_stop([make_round(0, 40)], 3, 1) == "every start is solved"


def test_table_numbers_and_picture_say_what_the_rounds_brought(tmp_path: Path) -> None:
    rounds = [make_round(0, 22), make_round(1, 28, BETTER), make_round(2, 25, SAME)]
    config = config_of(tmp_path)
    table = write_results(Results(config, rounds, "2 rounds were wanted", PairedTable(50, 30, 10, 10)))
    assert table == (tmp_path / "out" / "improve.md").read_text()
    assert "| 1 | 20 (9) | 70 % (28/40) | 55 - 82 % | +15 points" in table
    assert "| round | rollouts (solved with the expert's help) | success |" in table
    filtered = Results(dataclasses.replace(config, method="filtered"), rounds, "2 rounds were wanted")
    assert "| round | rollouts (solved) | success |" in write_results(filtered)
    table = write_results(Results(config, rounds, "2 rounds were wanted", PairedTable(50, 30, 10, 10)))
    assert "On fresh starts: 60 % (60/100) before (50 - 69 %), 80 % (80/100) after round 1" in table
    content = json.loads((tmp_path / "out" / "improve.json").read_text())
    assert content["best"] == {"round": 1, "checkpoint": "round_1/train"}
    assert content["final"]["p_mcnemar"] == pytest.approx(0.0022, abs=2e-4)
    assert (tmp_path / "out" / "improve.png").stat().st_size > 5_000
    table = write_results(Results(config, rounds[:1], "every start is solved", PairedTable(60, 0, 0, 40)))
    assert "No round helped: the first policy stays. On fresh starts it solves 60 % (60/100)" in table


def test_episodes_that_crashed_are_told_beside_the_success_that_counts_them(tmp_path: Path) -> None:
    """They count as failures, by which rounds are judged; no word told of them."""
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder, num_crashed in ((first, 0), (second, 2)):
        journal = Journal(folder, {"seed": 7})
        for index in range(4):
            crashed = {"error": "trace", "num_steps": 0} if index < num_crashed else {"success": True, "num_steps": 9}
            journal.add(EpisodeResult(**{**RESULT, "index": index, "wall_s": 1.0, **crashed}))
    config = config_of(tmp_path)
    for number, folder in enumerate((first, second)):
        path = config.round_folder(number) / "eval"
        path.parent.mkdir(parents=True)
        folder.rename(path)
        (path / DONE_FILE).write_text(json.dumps({"command": "x", "seconds": 1}))
    start = rounds._evaluated(config, Round(0, "start", Path(), 0, 0), None)
    after = rounds._evaluated(config, Round(1, "after", Path(), 0, 0), start)
    assert [(item.num_successes, item.num_trials, item.num_crashed) for item in (start, after)] == [(4, 4, 0), (2, 4, 2)]
    table = write_results(Results(config, [start, after], "1 round was wanted", after.against_best, 3))
    assert "After round 1: 2 episodes crashed in the simulator and count as failures; they are played again without" in table
    assert "In the last evaluations: 3 episodes crashed" in table
    assert "At the start" not in table
    content = json.loads((tmp_path / "out" / "improve.json").read_text())
    assert [item["crashed"] for item in content["rounds"]] == [0, 2]
    assert content["final"]["crashed"] == 3


def test_states_that_the_rounds_have_seen_are_not_called_fresh(tmp_path: Path) -> None:
    config = config_of(tmp_path, simulator="libero")
    table = write_results(
        Results(config, [make_round(0, 22), make_round(1, 28, BETTER)], "1 round was wanted", PairedTable(50, 30, 10, 10))
    )
    assert "On the benchmark's fixed starts, those of the rounds among them: 60 % (60/100) before" in table
    assert "fresh" not in table


def test_a_phase_that_is_done_is_not_run_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["python", "-c", f"open({str(tmp_path / 'count')!r}, 'a').write('x')"]
    for _ in range(2):
        assert run_phase("count", command, tmp_path / "phase") >= 0
    assert (tmp_path / "count").read_text() == "x"
    counted = [[*command, "--num_trials_per_task", count] for count in ("4", "4", "8")]
    for number in counted:  # more trials are wanted
        run_phase("count", number, tmp_path / "grown", must_match=("--num_trials_per_task",))
    assert (tmp_path / "count").read_text() == "xxx"
    with pytest.raises(ValueError, match="the stage 'fail' failed"):
        run_phase("fail", ["python", "-c", "raise SystemExit(1)"], tmp_path / "other")
    assert not (tmp_path / "other").exists()
    for content in ("", '{"command": "x"', "[]", "{}", '{"command": "x", "seconds": null}'):
        (tmp_path / "phase" / DONE_FILE).write_text(content)
        with pytest.raises(ValueError, match=r"phase/done\.json is damaged \(.*\); delete it, and the phase goes on"):
            run_phase("count", command, tmp_path / "phase")


@pytest.mark.parametrize("content", ["", '{"seed": 7', "[7]", "\xff"])
def test_damaged_settings_are_told_by_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """The error was that of the JSON alone, without the file and without a way on."""
    monkeypatch.setattr(rounds, "fingerprint", lambda folder: "policy")
    config = ImproveConfig(pretrained_checkpoint="policy", demonstrations=[str(tmp_path)], output_dir=tmp_path)
    rounds._keep_settings(config)
    settings = tmp_path / "settings.json"
    settings.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"{settings} is damaged \(.*choose another --output_dir.*delete this file alone"):
        rounds._keep_settings(config)
    settings.unlink()
    rounds._keep_settings(config)
    rounds._keep_settings(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "relable"}, "--method is 'relable'; did you mean relabel"),
        ({"simulator": "mujoco"}, "--simulator is 'mujoco'; known: aloha, libero, metaworld"),
        ({"task_suite_name": "libero_goal"}, "--task_suite_name belongs to --simulator libero; leave it out"),
        ({"pretrained_checkpoint": ""}, "--pretrained_checkpoint is missing"),
        ({"demonstrations": []}, "--demonstrations is empty; pass what the policy was trained on"),
        ({"demonstrations": ["/nowhere"]}, "--demonstrations: /nowhere does not exist"),
        ({"num_rollouts": 0}, "--num_rollouts is 0; it must be at least 1"),
        ({"seed": -1}, "--seed is -1; it must be at least 0"),
    ],
)
def test_flags_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, **changes)


def test_flags_of_training_come_in_pairs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give each flag its value"):
        config_of(tmp_path, finetune_flags="--image_aug").own_finetune_flags()
    with pytest.raises(ValueError, match='--finetune_flags "--lora_rank \'4": No closing quotation'):
        config_of(tmp_path, finetune_flags="--lora_rank '4").own_finetune_flags()
    with pytest.raises(ValueError, match="--finetune_flags has --run_root_dir, which each round sets by itself; leave it out"):
        config_of(tmp_path, finetune_flags="--run_root_dir elsewhere").own_finetune_flags()
    with pytest.raises(ValueError, match="--finetune_flags has --max_steps; this script has that flag itself"):
        config_of(tmp_path, finetune_flags="--lora_rank 4 --max_steps 5").own_finetune_flags()
    with pytest.raises(ValueError, match="--finetune_flags has --max_steps; this script has that flag itself"):
        config_of(tmp_path, finetune_flags="--max_steps=5 --lora_rank=4").own_finetune_flags()
    pairs = config_of(tmp_path, finetune_flags="--lora_rank=4 --exclude_episodes 'a=b.txt'").own_finetune_flags()
    assert pairs == {"lora_rank": "4", "exclude_episodes": "a=b.txt"}


def test_more_trials_than_a_benchmark_has_are_told_before_anything_is_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the last evaluations were refused when all rounds had been played."""

    def make_evaluation(simulator: str, flags: dict[str, Any]) -> None:
        raise ValueError(f"there are 50, not {flags['num_trials_per_task']}")

    monkeypatch.setattr(rounds, "make_evaluation", make_evaluation)
    monkeypatch.setattr(rounds.PolicySpec, "load", lambda folder: SPEC)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "policy.json").touch()
    with pytest.raises(ValueError, match="there are 50, not 60"):
        rounds.check_inputs(config_of(tmp_path, simulator="libero", num_trials=20, num_final_trials=60))


def test_what_may_change_between_calls_is_said(tmp_path: Path) -> None:
    names = {item.name for item in dataclasses.fields(ImproveConfig)}
    assert names - config_of(tmp_path).fixed().keys() == {"num_rounds", "patience", "num_envs", "num_final_trials", "output_dir"}
