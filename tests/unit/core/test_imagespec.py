"""ImageSpec's conversions against numpy in float64."""

import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from zsq.core.errors import MismatchError
from zsq.core.imagespec import ImageSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STANDARD_MEAN, STANDARD_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PLAIN = ImageSpec(size=(6, 8), mean=MEAN, std=STD)
RAW = ImageSpec(
    size=(6, 8),
    mean=(0.0, 0.0, 0.0),
    std=(1 / 255, 1 / 255, 1 / 255),
    standard_mean=STANDARD_MEAN,
    standard_std=STANDARD_STD,
)
GREY = ImageSpec(channels=1, size=(6, 8), mean=(0.3,), std=(0.3,))


def images(spec: ImageSpec, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *spec.shape), dtype=np.uint8)


def moments(mean, std) -> tuple[np.ndarray, np.ndarray]:
    return np.array(mean).reshape(1, -1, 1, 1), np.array(std).reshape(1, -1, 1, 1)


def resize_matrix(size: int, new_size: int) -> np.ndarray:
    """Bilinear, half-pixel centres, borders repeated, no antialiasing."""
    matrix = np.zeros((new_size, size))
    for row in range(new_size):
        source = min(max((row + 0.5) * size / new_size - 0.5, 0), size - 1)
        low = int(source)
        matrix[row, low] += 1 - (source - low)
        matrix[row, min(low + 1, size - 1)] += source - low
    return matrix


def assert_close(found: torch.Tensor, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.dtype == torch.float32
    assert np.abs(found.double().numpy() - wanted).max() < tolerance


@pytest.mark.parametrize("spec", [PLAIN, GREY])
def test_standard_space_is_norm_unless_stated(spec):
    pixels = images(spec)
    mean, std = moments(spec.mean, spec.std)
    wanted = (pixels / 255.0 - mean) / std
    assert_close(spec.pixels_to_standard(torch.from_numpy(pixels)), wanted)
    assert_close(spec.pixels_to_norm(torch.from_numpy(pixels)), wanted)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,) * 3, (0.502,) * 3), ((0.0,) * 3, (1.0,) * 3), ((0.0,) * 3, (1 / 255,) * 3)]
)
def test_moments_that_no_images_have_scale_the_input_alone(mean, std):
    spec = ImageSpec(size=(6, 8), mean=mean, std=std)
    assert spec.standard_moments == (MEAN, STD)
    pixels = torch.from_numpy(images(spec))
    unit = pixels.numpy() / 255.0
    (natural_mean, natural_std), (centre, scale) = moments(MEAN, STD), moments(mean, std)
    assert_close(spec.pixels_to_standard(pixels), (unit - natural_mean) / natural_std)
    assert_close(spec.pixels_to_norm(pixels) / 255, (unit - centre) / scale / 255)
    stated = spec.model_copy(update={"standard_mean": STANDARD_MEAN, "standard_std": STANDARD_STD})
    assert stated.standard_moments == (STANDARD_MEAN, STANDARD_STD)
    grey = ImageSpec(channels=1, size=(6, 8), mean=mean[:1], std=std[:1])
    assert grey.standard_moments == (pytest.approx((0.449,)), pytest.approx((0.226,)))


def test_raw_input_has_its_own_standard_space():
    pixels = images(RAW)
    mean, std = moments(STANDARD_MEAN, STANDARD_STD)
    standard = (pixels / 255.0 - mean) / std
    assert_close(RAW.pixels_to_standard(torch.from_numpy(pixels)), standard)
    assert_close(RAW.standard_to_norm(torch.from_numpy(standard).float()), pixels.astype(float), 1e-3)


@pytest.mark.parametrize("given", ["standard_mean", "standard_std"])
def test_one_standard_moment_alone_leaves_the_other_as_norm(given):
    value = (0.5, 0.5, 0.5)
    spec = ImageSpec(size=(6, 8), mean=MEAN, std=STD, **{given: value})
    pixels = images(spec)
    mean, std = moments(
        value if given == "standard_mean" else MEAN, value if given == "standard_std" else STD
    )
    assert_close(spec.pixels_to_standard(torch.from_numpy(pixels)), (pixels / 255.0 - mean) / std)
    mean, std = moments(MEAN, STD)
    assert_close(spec.pixels_to_norm(torch.from_numpy(pixels)), (pixels / 255.0 - mean) / std)


def test_bgr_is_reversed_after_normalisation():
    spec = ImageSpec(size=(6, 8), mean=MEAN, std=STD, channel_order="bgr")
    pixels = images(spec)
    mean, std = moments(MEAN, STD)
    assert_close(spec.pixels_to_norm(torch.from_numpy(pixels)), ((pixels / 255.0 - mean) / std)[:, ::-1])


@pytest.mark.parametrize("input_size", [(21, 28), (12, 8), (3, 5)])
def test_resize_to_the_networks_input(input_size):
    spec = ImageSpec(size=(6, 8), input_size=input_size, mean=MEAN, std=STD)
    pixels = images(spec)
    mean, std = moments(MEAN, STD)
    rows, columns = resize_matrix(6, input_size[0]), resize_matrix(8, input_size[1])
    wanted = np.einsum("ih,nchw,jw->ncij", rows, (pixels / 255.0 - mean) / std, columns)
    assert_close(spec.pixels_to_norm(torch.from_numpy(pixels)), wanted)


def test_nearest_repeats_pixels():
    spec = ImageSpec(size=(6, 8), input_size=(12, 24), interpolation="nearest", mean=MEAN, std=STD)
    pixels = images(spec)
    mean, std = moments(MEAN, STD)
    wanted = ((pixels / 255.0 - mean) / std).repeat(2, 2).repeat(3, 3)
    assert_close(spec.pixels_to_norm(torch.from_numpy(pixels)), wanted)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_is_differentiable_and_keeps_constants(interpolation):
    spec = ImageSpec(size=(6, 8), input_size=(9, 16), interpolation=interpolation, mean=MEAN, std=STD)
    standard = torch.full((1, 3, 6, 8), 0.7, requires_grad=True)
    outputs = spec.standard_to_norm(standard)
    assert torch.allclose(outputs, torch.full_like(outputs, 0.7), atol=1e-6)
    outputs.sum().backward()
    assert standard.grad.sum() == pytest.approx(outputs.numel(), rel=1e-5)


def test_every_pixel_value_survives_the_round_trip():
    for spec in (PLAIN, RAW):
        pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
        assert torch.equal(spec.standard_to_pixels(spec.pixels_to_standard(pixels)), pixels)


def test_pixels_are_rounded_to_nearest_and_clamped():
    rng = np.random.default_rng(1)
    standard = rng.normal(0, 4, (8, 3, 6, 8)).astype(np.float32)
    mean, std = moments(MEAN, STD)
    exact = (standard.astype(np.float64) * std + mean) * 255
    wanted = np.clip(np.rint(exact), 0, 255)
    found = PLAIN.standard_to_pixels(torch.from_numpy(standard))
    assert found.dtype == torch.uint8
    apart_from_ties = np.abs(exact - np.floor(exact) - 0.5) > 1e-3
    assert np.array_equal(found.numpy()[apart_from_ties], wanted[apart_from_ties])
    assert_close(PLAIN.standard_to_unit(torch.from_numpy(standard)), exact / 255)


@pytest.mark.parametrize("spec", [PLAIN, RAW, GREY])
def test_valid_box_is_black_and_white(spec):
    mean, std = moments(spec.standard_mean or spec.mean, spec.standard_std or spec.std)
    low, high = spec.valid_box()
    assert_close(low, (0 - mean) / std)
    assert_close(high, (1 - mean) / std)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": (0.5,)}, "mean has 1 values for 3 channels"),
        ({"standard_std": (0.5, 0.5)}, "standard_std has 2 values"),
        ({"std": (0.1, 0.0, 0.1)}, "greater than 0"),
        ({"size": (6, 0)}, "greater than 0"),
        ({"size": (6, 100_000)}, "at most 16384 px a side"),
        ({"colour": 1}, "Extra inputs"),
        ({"interpolation": "lanczos"}, "bilinear"),
        ({"channels": 1, "mean": (0.5,), "std": (0.5,), "channel_order": "bgr"}, "needs 3 channels"),
    ],
)
def test_impossible_specs_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        ImageSpec(**({"size": (6, 8), "mean": MEAN, "std": STD} | fields))


@pytest.mark.parametrize(
    ("mean", "std"),
    [(0.0, 1 / 255), (0.0, 1.0), (0.5, 0.5), (0.485, 0.229), (0.485, 1 / 255), (-1.5, 3.9)],
)
def test_moments_of_every_common_input_pass(mean, std):
    spec = ImageSpec(size=(6, 8), mean=(mean,) * 3, std=(std,) * 3)
    assert spec.mean == (mean,) * 3 and spec.std == (std,) * 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mean": (123.675, 116.28, 103.53)},
            r"mean 123\.675 .*pixels 0\.\.1; .*divide them by 255: mean 0\.485",
        ),
        ({"std": (58.395, 57.12, 57.375)}, r"std 58\.395 is too large.*by 255: std 0\.229"),
        ({"standard_mean": (127.5,) * 3}, r"mean 127\.5 is too large.*by 255: mean 0\.5"),
        ({"standard_std": (255.0,) * 3}, "by 255: std 1"),
        ({"mean": (-2.1, 0.0, 0.0)}, "mean -2.1 is too large"),
        ({"mean": (0.0, 0.0, 1e9)}, r"mean 1e\+09 is too large: mean and std are in units of pixels 0..1$"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "finite number"),
        ({"std": (0.2, 0.2, float("inf"))}, "finite number"),
    ],
)
def test_moments_that_no_input_has_are_refused_with_their_units(fields, message):
    with pytest.raises(ValidationError) as caught:
        ImageSpec(**({"size": (6, 8), "mean": MEAN, "std": STD} | fields))
    assert re.search(message, caught.value.errors()[0]["msg"])


def test_spec_is_immutable_and_comes_back_from_json():
    with pytest.raises(ValidationError):
        PLAIN.size = (1, 1)
    for spec in (PLAIN, RAW, GREY):
        assert ImageSpec.model_validate_json(spec.model_dump_json()) == spec
    assert GREY.shape == (1, 6, 8)


@pytest.mark.parametrize(
    "pixels, found",
    [
        (torch.zeros(5, 3, 8, 6, dtype=torch.uint8), "faces of shape (5, 3, 8, 6) uint8"),
        (torch.zeros(5, 1, 6, 8, dtype=torch.uint8), "faces of shape (5, 1, 6, 8) uint8"),
        (torch.zeros(3, 6, 8, dtype=torch.uint8), "faces of shape (3, 6, 8) uint8"),
        (torch.zeros(5, 3, 6, 8), "faces of shape (5, 3, 6, 8) float32"),
        (torch.zeros(0, 3, 6, 8, dtype=torch.uint8), "no faces; expected at least one"),
    ],
)
def test_pixels_of_another_kind_are_refused_in_one_line_naming_both(pixels, found):
    PLAIN.check_pixels(torch.from_numpy(images(PLAIN)))
    with pytest.raises(MismatchError) as error:
        PLAIN.check_pixels(pixels, "faces")
    message = str(error.value)
    assert message.startswith(found) and "\n" not in message
    assert "(N, 3, 6, 8) uint8" in message or "no faces" in message
