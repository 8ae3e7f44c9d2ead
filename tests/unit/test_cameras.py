"""The table of camera names against what each reader took before there was one table, and words in names that no table knows."""

from __future__ import annotations

import pytest

from prismatic.serving.protocols.openvla_rest import camera_of
from prismatic.vla.cameras import CAMERA_ORDER, ONE_ARM, SENT_KEYS, STORED_KEYS, TWO_ARMS, NamedBy, assign_cameras, is_wrist, slots_by_name

OWN = {name: name for name in ("primary", "wrist", "left_wrist", "right_wrist", "secondary")}
ALOHA = {"cam_high": "primary", "cam_left_wrist": "left_wrist", "cam_right_wrist": "right_wrist"}
KNOWN = {
    NamedBy.OPENPI: {
        **OWN,
        **ALOHA,
        "cam_low": "secondary",
        "observation/image": "primary",
        "observation/exterior_image_1_left": "primary",
        "observation/wrist_image": "wrist",
        "observation/wrist_image_left": "wrist",
        "base_0_rgb": "primary",
        "base_rgb": "primary",
        "wrist_rgb": "wrist",
        "left_wrist_0_rgb": "left_wrist",
        "right_wrist_0_rgb": "right_wrist",
    },
    NamedBy.VLA_EVAL: {
        **OWN,
        **ALOHA,
        **dict.fromkeys(("agentview", "image", "front", "head_camera", "rgb_static"), "primary"),
        **{"wrist_image": "wrist", "rgb_gripper": "wrist", "left_camera": "left_wrist", "right_camera": "right_wrist"},
    },
    NamedBy.ACT_FILE: {**OWN, **ALOHA, "cam_low": "secondary"},
    NamedBy.ROBOMIMIC_FILE: {
        **OWN,
        **{"agentview_rgb": "primary", "agentview_image": "primary"},
        **{"eye_in_hand_rgb": "wrist", "robot0_eye_in_hand_image": "wrist"},
    },
}


@pytest.mark.parametrize("user", KNOWN)
def test_each_user_knows_its_own_names_and_no_others(user: NamedBy) -> None:
    assert slots_by_name(user) == KNOWN[user]


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        *((name, "primary") for name in ("full_image", "image", "primary", "cam_high")),
        *((name, "secondary") for name in ("secondary_image", "secondary", "cam_low")),
        *((name, "wrist") for name in ("wrist", "wrist_image", "my_wristcam")),
        *((name, "left_wrist") for name in ("left_wrist_image", "cam_left_wrist", "wrist_left")),
        *((name, "right_wrist") for name in ("right_wrist_image", "cam_right_wrist")),
        *((name, None) for name in ("agentview", "observation/image", "state", "left_camera", "top")),
    ],
)
def test_post_act_takes_any_name_with_wrist_in_it(name: str, slot: str | None) -> None:
    assert camera_of(name) == slot


def test_order_and_keys_are_those_of_published_data_and_clients() -> None:
    assert CAMERA_ORDER == ("primary", "wrist", "left_wrist", "right_wrist", "secondary")
    assert list(STORED_KEYS.values()) == ["image", "wrist_image", "left_wrist_image", "right_wrist_image", "secondary_image"]
    assert SENT_KEYS == {**STORED_KEYS, "primary": "full_image"}
    assert all(camera_of(key) == slot for slot, key in SENT_KEYS.items())
    assert [name for name in CAMERA_ORDER if is_wrist(name)] == ["wrist", "left_wrist", "right_wrist"]
    assert (CAMERA_ORDER[:2], ("primary", "left_wrist", "right_wrist")) == (ONE_ARM, TWO_ARMS)


@pytest.mark.parametrize(
    ("names", "two_arms", "found", "left_over"),
    [
        (["top", "hand"], False, {"primary": "top", "wrist": "hand"}, []),
        (["left", "right", "front"], True, {"primary": "front", "left_wrist": "left", "right_wrist": "right"}, []),
        (["only_wrist"], False, {"primary": "only_wrist"}, []),
        (["laptop", "overhead"], False, {"primary": "overhead", "secondary": "laptop"}, []),
        (
            ["eye_in_hand", "agentview_left", "agentview_right"],
            True,
            {"primary": "agentview_left", "wrist": "eye_in_hand", "secondary": "agentview_right"},
            [],
        ),
        (["side", "head", "phone", "wrist"], False, {"primary": "head", "wrist": "wrist", "secondary": "side"}, ["phone"]),
    ],
)
def test_words_in_unknown_names_say_which_camera_it_is(
    names: list[str], two_arms: bool, found: dict[str, str], left_over: list[str]
) -> None:
    assert assign_cameras(names, two_arms) == (found, left_over)
