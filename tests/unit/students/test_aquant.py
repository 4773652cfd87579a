"""AQuant: thresholds that are learned with everything else of a unit."""

import pytest
import torch
from tiny_students import outputs
from toys import Downsample, plain, shared_teacher, structured_images

from zsq.core.errors import OptionError
from zsq.core.runtime import Runtime
from zsq.fitting.calibration import searched_weight
from zsq.placement.sites import place
from zsq.quantizers.thresholds import Thresholds
from zsq.students import create
from zsq.students.aquant import AQuant, AQuantOptions, first_slopes
from zsq.students.qdrop import QDrop
from zsq.widths import Bits

BITS = Bits(2, 2)


@pytest.fixture(scope="module")
def teacher():
    return shared_teacher(Downsample)


@pytest.fixture(scope="module")
def pixels(teacher):
    return teacher.spec.standard_to_pixels(structured_images((24, *teacher.spec.shape)))


class Renamed(AQuant):
    """With the random streams of QDrop."""

    name = "qdrop"


class Log:
    def __init__(self):
        self.after = []

    def advance(self, amount, **values):
        self.after += [values["after"]] if "after" in values else []


def fit(kind, teacher, pixels, bits=BITS, **options):
    options = {"iterations": 60, "batch": 12} | options
    log = Log()
    fitted = kind(kind.options_class(**options), Runtime()).fit(teacher, pixels, bits, log=log)
    return fitted, log.after


def test_borders_lower_the_error_that_qdrop_leaves(teacher, pixels):
    _, without = fit(QDrop, teacher, pixels, iterations=200)
    fitted, learned = fit(Renamed, teacher, pixels, iterations=200)
    assert len(learned) == len(without) and all(map(float.__lt__, learned, without))
    found = [module for module in fitted.network.modules() if isinstance(module, Thresholds)]
    halves = torch.arange(3) + 0.5
    assert found and any(not torch.allclose(each.thresholds, halves) for each in found)


def test_borders_that_stay_at_nearest_are_qdrop(teacher, pixels):
    own = {"border_start": "nearest", "border_learning_rate": 1e-30}
    fixed, errors = fit(Renamed, teacher, pixels, iterations=3, **own)
    same, wanted = fit(QDrop, teacher, pixels, iterations=3)
    torch.testing.assert_close(outputs(fixed, pixels), outputs(same, pixels))
    assert errors == wanted


def test_the_first_slopes_have_the_least_error_of_the_products():
    """Against thresholds tried one by one, of the layer that reads a site."""
    teacher = shared_teacher(plain)
    placement = place(teacher.network, teacher.example(), Bits(2, 2), fold=True)
    site = next(site for site in placement.of_kind("activation") if site.name.startswith("1."))
    for each in placement.of_kind("weight"):
        placement.put(each, searched_weight(placement.weight(each), each.bits))
    slope_C, axis = first_slopes(placement, site)
    layer = placement.network.get_submodule(site.name.removesuffix(".input"))
    weight, rounded = layer.weight.detach(), layer.weight_quantizer(layer.weight.detach())
    assert axis == 1 and slope_C.shape == (8,) and slope_C.abs().max() < 1
    u = torch.linspace(0.01, 0.99, 197)
    for channel in range(8):
        w, v = weight[:, channel].flatten(), rounded[:, channel].flatten()
        down, up = ((n * v - u[:, None] * w).square().sum(1) for n in (0, 1))
        threshold = u[(up < down).int().argmax()]
        assert abs(threshold - 0.5 * (1 + slope_C[channel])) < 0.006 or not 0 < 1 + slope_C[channel] < 2


def test_options_and_chains(teacher):
    assert AQuantOptions().border_start == "weights"
    with pytest.raises(OptionError, match="lsq-kd"):
        create("aquant,lsq-kd", teacher.spec, {}, Runtime())
