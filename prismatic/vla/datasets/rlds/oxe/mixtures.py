"""name -> data sets and weights that are trained together.

A weight of 1 shows every sample of a data set once per epoch, 0.5 every other sample, 2 every sample twice. This is the
published size-balanced normalisation: a data set's share is its weight times its size. A data set of the registry is a mixture
of itself.
"""

from __future__ import annotations

OXE_NAMED_MIXTURES: dict[str, tuple[tuple[str, float], ...]] = {
    "libero_4_task_suites_no_noops": (
        ("libero_spatial_no_noops", 1.0),
        ("libero_object_no_noops", 1.0),
        ("libero_goal_no_noops", 1.0),
        ("libero_10_no_noops", 1.0),
    ),
}
