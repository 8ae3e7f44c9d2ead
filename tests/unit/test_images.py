from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from rlds_writer import encode_png, smooth_image

from prismatic.vla.images import (
    AugmentationDraw,
    ImageRecipe,
    augment_batch,
    augment_cpu,
    center_crop,
    decode_image,
    draw_augmentation,
    encode_jpeg,
    lanczos3_weights,
    prepare_batch_on_device,
    prepare_image,
    resize_lanczos3,
    resize_lanczos3_batch,
    stack_draws,
)


def _no_change() -> AugmentationDraw:
    """Crops the middle, leaves the colours."""
    offset = np.array([(1 - 0.9**0.5) / 2], np.float32)
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    return AugmentationDraw(offset, offset, brightness=zero, contrast=one, saturation=one, hue=zero)


def _with(**values: float) -> AugmentationDraw:
    return AugmentationDraw(**{**vars(_no_change()), **{name: np.array([value], np.float32) for name, value in values.items()}})


def test_png_comes_back_exactly_and_jpeg_nearly() -> None:
    image = smooth_image(0, 31, 45)
    np.testing.assert_array_equal(decode_image(encode_png(image)), image)
    decoded = decode_image(encode_jpeg(image))
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).mean() < 5


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_other_png_modes_become_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(smooth_image(1, 9, 12)).convert(mode).save(buffer, "PNG")
    decoded = decode_image(buffer.getvalue())
    assert (decoded.shape, decoded.dtype) == ((9, 12, 3), np.uint8)


def test_grey_jpeg_becomes_rgb() -> None:
    buffer = io.BytesIO()
    Image.fromarray(smooth_image(1, 16, 16)).convert("L").save(buffer, "JPEG")
    decoded = decode_image(buffer.getvalue())
    assert decoded.shape == (16, 16, 3)
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


def test_what_is_not_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="damaged GIF image of 9 bytes"):
        decode_image(b"GIF89a...")
    with pytest.raises(ValueError, match="expected a JPEG or PNG image, found a file of the kind TIFF"):
        decode_image(b"II*\0....")
    with pytest.raises(ValueError, match="0 bytes"):
        decode_image(b"")
    with pytest.raises(ValueError, match=r"damaged|Invalid|JPEG"):
        decode_image(encode_jpeg(smooth_image(0, 32, 32))[:20])
    with pytest.raises(ValueError, match="damaged PNG"):
        decode_image(encode_png(smooth_image(0, 32, 32))[:60])
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="8 bits"):
        decode_image(buffer.getvalue())


def test_what_a_damaged_file_does_to_its_decoder_is_told_as_damage() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8))
    files = {}
    for kind in ("PNG", "BMP", "GIF"):
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        files[kind] = bytearray(buffer.getvalue())
    second = files["PNG"].index(b"IDAT", files["PNG"].index(b"IDAT") + 4)
    files["PNG"][second] = 0x88  # the name of a chunk in the middle
    files["BMP"][20], files["GIF"][6:10] = 0x7F, b"\xff\xff\xff\xff"  # sizes
    for kind, content in files.items():
        with pytest.raises(ValueError, match=rf"damaged {kind} image of {len(content)} bytes"):
            decode_image(bytes(content))


def test_lanczos_weights_sum_to_one_and_shrinking_uses_more_pixels() -> None:
    for length, size in ((256, 224), (64, 224), (480, 64), (7, 7), (1, 5)):
        np.testing.assert_allclose(lanczos3_weights(length, size).sum(1), 1, atol=1e-6)
    assert (lanczos3_weights(480, 64)[30] != 0).sum() > 40
    np.testing.assert_allclose(lanczos3_weights(7, 7), np.eye(7), atol=1e-6)


@pytest.mark.parametrize(("height", "width", "size"), [(256, 256, 224), (48, 64, 224), (37, 91, 64), (1, 1, 8)])
def test_resize_is_the_same_on_cpu_and_in_a_batch_and_near_pillow(height: int, width: int, size: int) -> None:
    image = smooth_image(2, height, width)
    resized = resize_lanczos3(image, size)
    assert (resized.shape, resized.dtype) == ((size, size, 3), np.uint8)
    batched = resize_lanczos3_batch(torch.tensor(np.stack([image, image])), size).numpy()
    assert np.abs(batched - resized.astype(int)).mean() < 0.01
    pillow = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(resized - pillow).mean() < 0.3
    assert np.abs(resized - pillow).max() <= 8


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = smooth_image(3, 64, 64)
    assert resize_lanczos3(image, 64) is image


def test_center_crop_keeps_a_centred_linear_ramp_linear() -> None:
    size = 65
    ramp = np.repeat(np.linspace(0, 255, size)[None, :, None], size, 0).repeat(3, 2).round().astype(np.uint8)
    cropped = center_crop(ramp)
    side = 0.9**0.5
    expected = 255 * ((1 - side) / 2 + side * np.linspace(0, 1, size))
    np.testing.assert_allclose(cropped[10, :, 1], expected, atol=1.6)
    assert cropped.shape == ramp.shape


def test_prepare_image_follows_the_recipe() -> None:
    image = smooth_image(4, 96, 128)
    plain = prepare_image(image, ImageRecipe(64, jpeg_round_trip=False))
    np.testing.assert_array_equal(plain, resize_lanczos3(image, 64))
    np.testing.assert_array_equal(prepare_image(image, ImageRecipe(64)), resize_lanczos3(decode_image(encode_jpeg(image)), 64))
    cropped = prepare_image(image, ImageRecipe(64, jpeg_round_trip=False, center_crop=True))
    np.testing.assert_array_equal(cropped, center_crop(plain))
    with pytest.raises(ValueError, match="uint8 RGB"):
        prepare_image(image.astype(np.float32), ImageRecipe(64))


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ImageRecipe(0)


def test_draws_lie_in_their_ranges_and_share_offsets_only_when_asked() -> None:
    rng = np.random.default_rng(0)
    draw = stack_draws([draw_augmentation(rng) for _ in range(500)])
    for values, low, high in (
        (draw.crop_y, 0, 1 - 0.9**0.5),
        (draw.crop_x, 0, 1 - 0.9**0.5),
        (draw.brightness, -0.2, 0.2),
        (draw.contrast, 0.8, 1.2),
        (draw.saturation, 0.8, 1.2),
        (draw.hue, -0.05, 0.05),
    ):
        assert values.shape == (500,)
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high >= values.max() > high - 0.05 * (high - low)
    assert np.corrcoef(draw.crop_x, draw.crop_y)[0, 1] < 0.2
    equal = draw_augmentation(rng, equal_crop_offsets=True)
    assert equal.crop_x == equal.crop_y


def test_a_draw_without_change_is_the_center_crop() -> None:
    image = smooth_image(5, 64, 64)
    difference = np.abs(augment_cpu(image[None], _no_change())[0].astype(int) - center_crop(image))
    assert difference.max() <= 1


def test_brightness_contrast_saturation_and_hue_do_what_they_say() -> None:
    flat = np.full((1, 8, 8, 3), 100, np.uint8)
    assert augment_cpu(flat, _with(brightness=0.2))[0, 0, 0].tolist() == [151] * 3
    assert augment_cpu(flat, _with(contrast=1.2))[0, 0, 0].tolist() == [100] * 3
    red = np.zeros((1, 8, 8, 3), np.uint8)
    red[..., 0], red[..., 1:] = 200, 100
    np.testing.assert_allclose(augment_cpu(red, _with(saturation=1.2))[0, 0, 0], [200, 80, 80], atol=1)
    np.testing.assert_allclose(augment_cpu(red, _with(hue=1 / 3))[0, 0, 0], [100, 200, 100], atol=1)
    np.testing.assert_allclose(augment_cpu(red, _with(hue=-1 / 3))[0, 0, 0], [100, 100, 200], atol=1)


def test_all_cameras_of_a_sample_share_its_draw_and_samples_do_not() -> None:
    rng = np.random.default_rng(1)
    image = smooth_image(6, 48, 48)
    batch = torch.tensor(np.stack([[image, image], [image, image]]))  # [2, 2, 48, 48, 3]
    draws = [draw_augmentation(rng), draw_augmentation(rng)]
    augmented = augment_batch(batch, stack_draws(draws)).numpy()
    np.testing.assert_array_equal(augmented[:, 0], augmented[:, 1])
    assert (augmented[0] != augmented[1]).mean() > 0.5
    alone = augment_cpu(np.stack([image, image]), draws[1])
    assert np.abs(alone.astype(int) - augmented[1]).max() <= 1
    with pytest.raises(ValueError, match="1 samples"):
        augment_batch(batch, draws[0])


def test_augmentation_does_not_alter_its_input() -> None:
    image = smooth_image(7, 32, 32)[None]
    before = image.copy()
    augment_cpu(image, draw_augmentation(np.random.default_rng(2)))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("offset", [0, 1 - 0.9**0.5, 0.02])
def test_augmenting_in_place_gives_the_pixels_of_a_batch_up_to_the_edges(offset: float) -> None:
    images = np.stack([smooth_image(9, 224, 224), smooth_image(10, 224, 224)])
    draw = _with(crop_x=offset, crop_y=offset, brightness=0.1, contrast=0.8, saturation=1.2, hue=0.05)
    expected = augment_batch(torch.tensor(images[None]), draw)[0].numpy()
    augmented = augment_cpu(images, draw, out=images)
    assert augmented is images
    assert np.abs(augmented.astype(int) - expected).max() <= 1


def test_importing_images_does_not_load_torch() -> None:
    subprocess.run([sys.executable, "-c", "import sys, prismatic.vla.images; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (60, 80), (48, 48)])
def test_preparing_a_batch_gives_the_pixels_of_the_cpu_path(height: int, width: int) -> None:
    rng = np.random.default_rng(3)
    frames = np.stack([[smooth_image(10 * sample + camera, height, width) for camera in range(2)] for sample in range(3)])
    draws = [draw_augmentation(rng) for _ in range(3)]
    prepared = prepare_batch_on_device(torch.from_numpy(frames), torch.from_numpy(stack_draws(draws).rows()), 48).numpy()
    assert prepared.shape == (3, 2, 48, 48, 3)
    for sample, draw in enumerate(draws):
        expected = augment_cpu(np.stack([resize_lanczos3(frame, 48) for frame in frames[sample]]), draw)
        difference = np.abs(prepared[sample].astype(int) - expected)
        assert difference.mean() < 0.1
        assert difference.max() <= 2
    plain = prepare_batch_on_device(torch.from_numpy(frames), None, 48).numpy()
    assert np.abs(plain[0, 0].astype(int) - resize_lanczos3(frames[0, 0], 48)).max() <= 1
    with pytest.raises(ValueError, match="2 samples, the batch has 3"):
        prepare_batch_on_device(torch.from_numpy(frames), torch.zeros(2, 6), 48)


def test_preparing_is_exact_under_autocast() -> None:
    frames = torch.tensor(smooth_image(1, 60, 80)[None, None])
    expected = resize_lanczos3_batch(frames, 48)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(prepare_batch_on_device(frames, None, 48), expected)


def test_read_only_and_strided_images_are_resized_alike() -> None:
    image = smooth_image(8, 40, 60)
    frozen = image.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(resize_lanczos3(frozen, 24), resize_lanczos3(image, 24))
    turned = image[::-1, ::-1]
    np.testing.assert_array_equal(resize_lanczos3(turned, 24), resize_lanczos3(turned.copy(), 24))
