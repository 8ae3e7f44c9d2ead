"""name -> data sets and weights that are trained together.

A weight of 1 shows every sample of a data set once per epoch, 0.5 every other sample, 2 every sample twice. This is the
published size-balanced normalisation: a data set's share is its weight times its size. A data set of the registry is a mixture
of itself, so it needs no line here.

Names and weights of the Open X-Embodiment mixtures are facts of the published system, read in a fork of openvla-oft. A data set
that cannot be used (absent, another robot platform, no such camera) stops the start with a message that names it; it is not left
out in silence.
"""

from __future__ import annotations

Mixture = tuple[tuple[str, float], ...]

_RLDS = "_converted_externally_to_rlds"

_RTX: Mixture = (
    ("fractal20220817_data", 0.54087122203),
    ("kuka", 0.8341046294),
    ("bridge_orig", 1.0),
    ("taco_play", 2.0),
    ("jaco_play", 2.0),
    ("berkeley_cable_routing", 3.0),
    ("roboturk", 1.0),
    ("viola", 2.0),
    ("berkeley_autolab_ur5", 1.0),
    ("toto", 1.0),
)

_MAGIC_SOUP: Mixture = (
    ("fractal20220817_data", 0.54087122203),
    ("kuka", 0.8341046294),
    ("bridge_orig", 1.0),
    ("taco_play", 2.0),
    ("jaco_play", 1.0),
    ("berkeley_cable_routing", 1.0),
    ("roboturk", 2.0),
    ("viola", 2.0),
    ("berkeley_autolab_ur5", 2.0),
    ("toto", 1.0),
    ("language_table", 0.1),
    (f"stanford_hydra_dataset{_RLDS}", 2.0),
    (f"austin_buds_dataset{_RLDS}", 1.0),
    (f"nyu_franka_play_dataset{_RLDS}", 3.0),
    (f"furniture_bench_dataset{_RLDS}", 0.1),
    (f"ucsd_kitchen_dataset{_RLDS}", 2.0),
    (f"austin_sailor_dataset{_RLDS}", 1.0),
    (f"austin_sirius_dataset{_RLDS}", 1.0),
    (f"dlr_edan_shared_control{_RLDS}", 1.0),
    (f"iamlab_cmu_pickup_insert{_RLDS}", 1.0),
    ("utaustin_mutex", 1.0),
    ("berkeley_fanuc_manipulation", 2.0),
    ("cmu_stretch", 1.0),
)

_MAGIC_SOUP_PLUS: Mixture = (*_MAGIC_SOUP, ("bc_z", 0.2), ("fmb_dataset", 1.0), ("dobbe", 0.2), ("droid", 0.06))

OXE_NAMED_MIXTURES: dict[str, Mixture] = {
    "libero_4_task_suites_no_noops": (
        ("libero_spatial_no_noops", 1.0),
        ("libero_object_no_noops", 1.0),
        ("libero_goal_no_noops", 1.0),
        ("libero_10_no_noops", 1.0),
    ),
    "bridge": (("bridge_orig", 1.0),),
    "bridge_rt_1": (("bridge_orig", 1.0), ("fractal20220817_data", 1.0)),
    "rtx": _RTX,
    # The published list names taco_play, berkeley_cable_routing, viola and toto a second time, with 1.0; its reader takes the first only.
    # It also names berkeley_rpt, whose 8 joint targets and lone wrist camera no policy can share with the others; its reader drops it.
    "rtx_franka": (
        *_RTX,
        (f"stanford_hydra_dataset{_RLDS}", 1.0),
        (f"austin_buds_dataset{_RLDS}", 3.0),
        (f"nyu_franka_play_dataset{_RLDS}", 3.0),
        (f"maniskill_dataset{_RLDS}", 0.1),
        (f"furniture_bench_dataset{_RLDS}", 0.1),
        (f"cmu_franka_exploration_dataset{_RLDS}", 5.0),
        (f"austin_sailor_dataset{_RLDS}", 1.0),
        (f"austin_sirius_dataset{_RLDS}", 1.0),
        (f"kaist_nonprehensile{_RLDS}", 3.0),
        (f"stanford_robocook{_RLDS}", 1.0),
        (f"iamlab_cmu_pickup_insert{_RLDS}", 1.0),
        ("utaustin_mutex", 1.0),
        ("cmu_play_fusion", 1.0),
    ),
    "oxe_magic_soup": _MAGIC_SOUP,
    "oxe_magic_soup_plus": _MAGIC_SOUP_PLUS,
    # Without language_table and droid, RT-1 at its full size.
    "oxe_magic_soup_plus_minus": (
        ("fractal20220817_data", 1.0),
        *(part for part in _MAGIC_SOUP_PLUS if part[0] not in ("fractal20220817_data", "language_table", "droid")),
    ),
}
