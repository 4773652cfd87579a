"""Gradual magnitude pruning while a student is trained."""

import pytest
import torch
from tiny_students import outputs
from torch import nn
from toys import conv_bn, head, plain, shared_teacher, structured_images

import zsq
from zsq.core.errors import MismatchError, OptionError
from zsq.core.runtime import Runtime
from zsq.fitting.gradual import Gradual, sparsity_at
from zsq.quantizers.layers import weight_of
from zsq.saved.cost import student_cost
from zsq.students import create
from zsq.widths import Bits

NAME = "1.0.weight"


def two(channels, outputs):
    return nn.Sequential(conv_bn(channels, 4, 2), head(4, outputs))


def images_of(teacher):
    return teacher.spec.standard_to_pixels(structured_images((12, *teacher.spec.shape)))


def fit(name, bits="W4A4", build=plain, passes=(), **options):
    teacher = shared_teacher(build)
    short = {} if "," in name else {"iterations": 7, "batch": 6}
    student = create(name, teacher.spec, short | options, Runtime(), passes=passes)
    return student.fit(teacher, images_of(teacher), Bits.parse(bits))


def test_the_schedule_is_the_formula():
    assert sparsity_at(0, 10, 0.8) == 0 and sparsity_at(10, 10, 0.8) == sparsity_at(99, 10, 0.8) == 0.8
    assert sparsity_at(5, 10, 0.8) == pytest.approx(0.8 * 7 / 8)


@pytest.mark.parametrize("steps", [1, 7, 43, 100])
def test_zeros_rise_to_the_share_asked_for_and_masks_stay(steps):
    weight = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    gradual = Gradual({"w": weight}, 0.75, False, steps, {})
    zeros, masks = [], []
    for _ in range(steps):
        weight += 0.01
        gradual.after_step()
        zeros.append(int((weight == 0).sum()))
        masks.append(gradual.masks["w"])
    assert zeros == sorted(zeros) and zeros[-1] == 150
    assert all(torch.equal(mask, masks[-1]) for mask in masks[gradual.end - 1 :])


def test_of_equal_magnitudes_as_many_stay_as_asked_for():
    weight = torch.ones(40)
    Gradual({"w": weight}, 0.5, False, 1, {}).after_step()
    assert (weight != 0).sum() == 20


def test_a_weight_that_comes_back_has_its_dense_value():
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    gradual = Gradual({"w": weight}, 0.5, False, 40, {})
    while weight[0] != 0:
        gradual.after_step()
    weight[0] += 9
    gradual.after_step()
    while not gradual.masks["w"][0]:
        gradual.after_step()
    assert weight[0] == 10


@pytest.mark.parametrize("name", ["lsq-kd", "kd", "gdfq-ft"])
def test_zeros_are_kept_counted_and_saved(name, tmp_path):
    fitted = fit(name, sparsity=0.5)
    weight = weight_of(fitted.network, NAME)
    assert fitted.kept == {NAME: weight.numel() // 2} and int((weight != 0).sum()) <= fitted.kept[NAME]
    cost = {layer.name: layer for layer in student_cost(fitted).layers}["1.0"]
    assert cost.bit_operations == cost.macs * 16 // 2
    zsq.save_student(fitted, shared_teacher(plain), tmp_path)
    pixels = images_of(shared_teacher(plain))
    loaded = zsq.load_student(tmp_path)
    assert torch.equal(outputs(loaded, pixels), outputs(fitted, pixels)) and loaded.kept == fitted.kept


def test_floats_are_pruned_and_a_pass_keeps_its_zeros():
    fitted = fit("kd", "W32A32", sparsity=0.25)
    assert not fitted.tensors and (weight_of(fitted.network, NAME) == 0).float().mean() == 0.25
    after = fit("kd", passes=["prune=0.5"], sparsity=0.75)
    before = fit("kd", passes=["prune=0.5"])
    zero = weight_of(before.network, NAME) == 0
    assert fit("kd", passes=["prune=0.5"], sparsity=0.25).kept == before.kept
    assert (
        bool((weight_of(after.network, NAME)[zero] == 0).all()) and after.kept[NAME] == before.kept[NAME] // 2
    )


def test_the_next_student_of_a_chain_keeps_the_zeros():
    fitted = fit("kd,lsq-kd", kd={"sparsity": 0.5, "iterations": 3}, **{"lsq-kd.iterations": 3})
    kept = int((weight_of(fitted.network, NAME) != 0).sum())
    assert kept <= fitted.kept[NAME] == weight_of(fitted.network, NAME).numel() // 2


def test_nothing_changes_without():
    pixels = images_of(shared_teacher(plain))
    plain_, none = fit("lsq-kd"), fit("lsq-kd", sparsity=0.0, sparsity_over="network")
    assert torch.equal(outputs(plain_, pixels), outputs(none, pixels))
    assert "sparsity" not in plain_.made.options and not plain_.kept


def test_what_cannot_be_pruned_is_refused():
    with pytest.raises(OptionError, match="never zero"):
        fit("qfd", sparsity=0.5)
    for bits, options in (("W32A32", {}), ("W4A4", {"iterations": 0})):
        with pytest.raises(OptionError, match="a fit that trains"):
            fit("lsq-kd", bits, sparsity=0.5, **options)
    with pytest.raises(MismatchError, match="between the first and the last"):
        fit("kd", build=two, sparsity=0.5)
