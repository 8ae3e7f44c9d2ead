"""What a worse camera would have seen: noise, blur, exposure, compression. Letters: H, W image height and width."""

from __future__ import annotations

import io

import numpy as np

from experiments.robot.simulators.episodes import EpisodeSpec
from experiments.robot.simulators.perturbations import Perturbation


def change_picture(picture: np.ndarray, change: Perturbation, episode: EpisodeSpec, slot: str, step: int) -> np.ndarray:
    """uint8 [H, W, 3], another array than `picture`: of camera `slot` at `step`, by one of PICTURE_AXES."""
    if change.axis == "noise":
        noise = change.rng(episode, f" {slot} {step}").normal(0, change.size, picture.shape)
        return _to_levels(picture + noise)
    if change.axis == "brightness":
        sign = change.rng(episode).choice([-1, 1])  # the whole episode is darker, or brighter
        return _to_levels(picture * 2.0 ** (change.size * sign))
    return _blurred(picture, change.size / 100) if change.axis == "blur" else _compressed(picture, int(change.size))


def _to_levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _blurred(picture: np.ndarray, share: float) -> np.ndarray:
    """By a Gaussian whose standard deviation is that share of the picture's width."""
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(share * picture.shape[1])))


def _compressed(picture: np.ndarray, quality: int) -> np.ndarray:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))
