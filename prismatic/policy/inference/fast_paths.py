"""Every way to compute faster than plainly: what computes the same plainly, how far the two may be apart, and which tests compare them.

What is in use, and what was left and why, is told by `facts` (/info, /metrics, benchmarks) and in_use.json of a run under these names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FastPath:
    """One of them."""

    plain: str  # dotted name of the reference
    tolerance: float  # the largest difference
    measure: str  # of what
    tests: tuple[str, ...]  # file::function, at least one; each takes its bound from here


_SHARE = "root mean square of the difference, as a share"
_GPU_TRAINING = "tests/smoke/test_gpu_training.py::test_"

FAST_PATHS = {
    "compiled": FastPath(
        "prismatic.models.language.DecoderLayer",
        0.03,
        "losses of eight steps in bfloat16, of about 0.5",
        (
            f"{_GPU_TRAINING}recorded_steps_give_the_losses_of_plain_ones",
            f"{_GPU_TRAINING}every_way_to_compute_a_step_gives_the_plain_losses",
        ),
    ),
    "recorded": FastPath(
        "prismatic.training.loop.Trainer.accumulate",
        1e-3,
        "losses of eight steps in bfloat16, of about 0.5",
        (f"{_GPU_TRAINING}recorded_steps_give_the_losses_of_plain_ones",),
    ),
    "gathered gradients": FastPath(
        "torch.Tensor.backward",
        0.0,
        "gradients",
        ("tests/smoke/test_low_memory.py::test_gradients_gathered_at_once_are_those_added_one_by_one",),
    ),
    "fp8 base": FastPath(
        "torch.nn.functional.linear",
        0.04,
        f"{_SHARE} of a product and of its input's gradient",
        ("tests/unit/test_fp8_base.py::test_product_and_gradient_are_near_the_plain_ones",),
    ),
    "fp8 base under adapters": FastPath(
        "torch.nn.functional.linear",
        0.15,
        f"{_SHARE} of the gradient of each kind of projection's adapters, two layers",
        ("tests/unit/test_fp8_base.py::test_adapters_over_it_are_stacked_and_learn_as_over_the_plain_base",),
    ),
    "fp8 policy": FastPath(
        "torch.nn.functional.linear",
        0.15,
        f"{_SHARE} of a small policy's actions",
        ("tests/smoke/test_gpu_quantization.py::test_actions_stay_close",),
    ),
    "recorded programs": FastPath(
        "prismatic.policy.inference.engine.EagerEngine",
        0.05,
        f"{_SHARE} of a small policy's actions in bfloat16",
        ("tests/smoke/test_gpu_programs.py::test_programs_act_like_the_plain_engine",),
    ),
    "jpeg on the device": FastPath(
        "prismatic.vla.images.round_trip",
        0.0,
        "levels of a pixel",
        ("tests/smoke/test_gpu_images.py::test_the_jpeg_round_trip_is_that_of_the_cpu_bit_for_bit",),
    ),
}
