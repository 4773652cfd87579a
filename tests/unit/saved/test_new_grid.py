"""A grid is one file: a class with its numbers, taken by files, tables and costs as the others are."""

import pytest
import torch
from torch import nn

import zsq
from zsq.contract import Facts, Student
from zsq.core.errors import OptionError, StudentFileError
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.placement.sites import place
from zsq.quantizers.grids import STORED, Quantizer, stored
from zsq.saved.cost import student_cost
from zsq.saved.onnx_qdq import check_exportable
from zsq.saved.stored_grids import restore
from zsq.students import STUDENTS
from zsq.widths import Bits


class Ternary(Quantizer):
    """A weight on {-a, 0, a}."""

    kind, form = "weight", "ternary"
    no_onnx_form = "three values"

    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", scale.detach().clone())

    bounds, num_scales, signed = (0, 2), 1, True

    def forward(self, weight):
        return self.values(self.integers(weight))

    def integers(self, weight):
        return (weight / self.scale).round().clamp(-1, 1) + 1

    def values(self, integers):
        return (integers - 1) * self.scale

    @classmethod
    def restored(cls, kind, bits, bounds, tensors):
        if bounds != (0, 2) or not bool(tensors["scale"] > 0):
            raise ValueError("no three values")
        return cls(tensors["scale"])


class Ternarized(Student):
    """Every weight on its own three values."""

    name, form = "ternary", "ternary"
    facts = Facts(paper="none", summary="three values")
    options_class = Options

    def run(self, fit):
        placement = place(fit.teacher.network, fit.teacher.example(), fit.bits, fold=True)
        for site in placement.of_kind("weight"):
            placement.put(site, Ternary(placement.weight(site).abs().mean()))
        return self.result(fit, placement.network.requires_grad_(False), placement.table())


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(STUDENTS, "ternary", Ternarized)
    kept = dict(STORED)
    stored("weight")(Ternary)
    yield
    STORED.clear()
    STORED.update(kept)


def test_a_grid_of_ones_own_is_saved_loaded_and_counted(digits, images, tmp_path, known):
    fitted = Ternarized(Options(), Runtime()).fit(digits, images[:4], Bits(2, 32))
    zsq.save_student(fitted, digits, tmp_path)
    loaded = zsq.load_student(tmp_path)
    standard = digits.spec.pixels_to_standard(images)
    assert torch.equal(loaded.logits(standard), fitted.logits(standard))
    assert loaded.tensors == fitted.tensors and student_cost(loaded).mean_weight_bits == 2
    with pytest.raises(OptionError, match="its grids have three values"):
        check_exportable("ternary", Bits(8, 8), None)


def test_a_file_with_a_grid_that_nobody_states(digits, images, tmp_path):
    fitted = Ternarized(Options(), Runtime()).fit(digits, images[:4], Bits(2, 32))
    with pytest.raises((AssertionError, StudentFileError, zsq.core.errors.UntraceableError)):
        zsq.save_student(fitted, digits, tmp_path)
    with pytest.raises(ValueError, match="a ternary grid, which no weight has"):
        restore("ternary", "weight", 2, (0, 2), {"scale": torch.ones(())})


def test_a_form_has_one_class(known):
    with pytest.raises(AssertionError, match="is the ternary grid of a weight already"):
        stored("weight")(type("Other", (nn.Module,), {"form": "ternary"}))
