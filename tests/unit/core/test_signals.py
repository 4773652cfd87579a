"""Signals and stated ranges in the image spec."""

import json

import pytest
import torch
from pydantic import ValidationError

from zsq.core.imagespec import ImageSpec

SIGNAL = ImageSpec(channels=2, size=(10,), range=(-2.0, 3.0), mean=(0.5, 0.0), std=(2.0, 1.0))


def test_pixels_are_the_values_of_the_range_in_256_levels():
    assert SIGNAL.shape == (2, 10) and SIGNAL.is_signal and SIGNAL.plane == (1, 10)
    values = torch.tensor([-2.0, 3.0, 0.0, -9.0, 9.0, -2 + SIGNAL.step]).view(1, 1, 6)
    assert SIGNAL.values_to_pixels(values).flatten().tolist() == [0, 255, 102, 0, 255, 1]
    assert SIGNAL.step == pytest.approx(5 / 255)
    assert SIGNAL.step_line == "values -2..3 are stored as 0..255: one step is 0.01961"


def test_the_network_takes_values_by_mean_and_std_in_their_own_units():
    pixels = torch.randint(256, (3, 2, 10), dtype=torch.uint8)
    values = -2 + pixels.double() * SIGNAL.step
    wanted = (values - torch.tensor([[0.5], [0.0]])) / torch.tensor([[2.0], [1.0]])
    norm = SIGNAL.pixels_to_norm(pixels)
    torch.testing.assert_close(norm.double(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal((SIGNAL.norm_to_unit(norm) * 255).round().to(torch.uint8), pixels)
    assert torch.equal(SIGNAL.standard_to_pixels(SIGNAL.pixels_to_standard(pixels)), pixels)
    low, high = SIGNAL.valid_box()
    assert low.shape == high.shape == (1, 2, 1)


def test_standard_space_begins_in_the_middle_where_nothing_is_known():
    raw = ImageSpec(channels=1, size=(8,), range=(-40.0, 40.0), mean=(0.0,), std=(1.0,))
    assert raw.standard_moments == ((0.5,), (0.25,))
    known = raw.model_copy(update={"standard_mean": (4.0,), "standard_std": (8.0,)})
    mean, std = known.standard_moments
    assert mean == (pytest.approx(0.55),) and std == (pytest.approx(0.1),)
    usual = ImageSpec(channels=1, size=(8,), mean=(0.5,), std=(0.25,))
    assert usual.standard_moments == ((0.5,), (0.25,)) and usual.step_line is None


def test_a_range_is_for_images_too_and_is_written_only_where_it_is_stated():
    plain = ImageSpec(channels=1, size=(4, 6), mean=(0.5,), std=(0.25,))
    decibels = plain.model_copy(update={"range": (-80.0, 0.0), "mean": (-40.0,), "std": (20.0,)})
    pixels = torch.randint(256, (2, 1, 4, 6), dtype=torch.uint8)
    torch.testing.assert_close(plain.pixels_to_norm(pixels), decibels.pixels_to_norm(pixels))
    assert "range" not in plain.model_dump() and "range" not in json.loads(plain.model_dump_json())
    for spec in (SIGNAL, decibels, plain):
        assert ImageSpec(**spec.model_dump(mode="json")) == spec


def test_signals_are_resized_along_their_side():
    spec = ImageSpec(channels=1, size=(4,), input_size=(8,), mean=(0.5,), std=(0.25,))
    signal = torch.randn(2, 1, 4)
    wanted = torch.nn.functional.interpolate(signal, size=8, mode="linear", align_corners=False)
    assert torch.equal(spec.standard_to_norm(signal), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (2, 3, 4)}, "video is out of scope"),
        ({"size": ()}, "at least 1 item"),
        ({"size": (0,)}, "greater than 0"),
        ({"size": (2**24 + 1,)}, "less than or equal to 16777216"),
        ({"input_size": (4, 4)}, "as many sides"),
        ({"interpolation": "bicubic"}, "is for images"),
        ({"range": (1.0, 1.0)}, "not .lowest, highest."),
        ({"range": (0.0, float("nan"))}, "finite number"),
        ({"range": (-1e308, 1e308)}, "not .lowest, highest."),
        ({"range": (0.0, 1e-300), "mean": (1e300,)}, "do not belong to values"),
    ],
)
def test_impossible_signals_are_refused(changes, message):
    fields = {"channels": 1, "size": (8,), "mean": (0.0,), "std": (1.0,)}
    with pytest.raises(ValidationError, match=message):
        ImageSpec(**(fields | changes))
