"""Saved students give the same outputs bit by bit, and what cannot be saved is refused."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import call
from safetensors.torch import load_file
from tiny_students import fit, images_of, outputs, smallest_teacher
from torch import nn
from toys import image_spec, make_teacher, structured_images

import zsq
from zsq.contract import Teacher
from zsq.core.errors import OptionError, StudentFileError, UntraceableError
from zsq.core.runtime import Runtime
from zsq.graph import vocabulary
from zsq.quantizers.grids import FakeQuantizer
from zsq.saved.cost import student_cost
from zsq.saved.saving import check_saveable
from zsq.students import STUDENTS, create
from zsq.tasks.embed import Embed
from zsq.widths import Bits


@pytest.mark.parametrize(
    "name, bits", [*((name, "W4A4") for name in STUDENTS), ("ptq", "W32A32"), ("lsq-kd", "W32A32")]
)
def test_every_student_comes_back_with_the_same_outputs(tmp_path, name, bits):
    teacher = smallest_teacher(name)
    images = images_of(teacher)
    fitted = fit(name, teacher, images, bits)
    zsq.save_student(fitted, teacher, tmp_path / "a" / "net.safetensors")
    loaded = zsq.load_student(tmp_path / "a" / "net.json")
    assert torch.equal(outputs(loaded, images), outputs(fitted, images))
    for fact in ("student", "bits", "first_last", "spec", "tensors", "task"):
        assert getattr(loaded, fact) == getattr(fitted, fact), fact
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["net.json", "net.safetensors"]
    assert bits == "W32A32" or integers_make_the_weights(tmp_path / "a" / "net", fitted)


def integers_make_the_weights(stem, fitted):
    """The files alone, in float64, against the fitted student."""
    stored = load_file(stem.with_suffix(".safetensors"))
    grids = json.loads(stem.with_suffix(".json").read_text())["grids"]
    weights = [grid for grid in grids if grid["kind"] == "weight"]
    for grid in weights:
        layer = fitted.network.get_submodule(grid["name"].removesuffix(".weight"))
        expected = layer.weight_quantizer(layer.weight).detach().numpy()
        integers = stored[grid["name"]].numpy()
        assert integers.dtype in (np.int8, np.uint8)
        assert np.ptp(integers.astype(int)) < 2 ** grid["bits"]
        parts = {key: stored[f"{grid['path']}.{key}"].double().numpy() for key in PARTS[grid["form"]]}
        values = VALUES[grid["form"]](integers.astype(float), grid, **parts)
        np.testing.assert_allclose(values, expected, atol=1e-5)
    return len(weights)


def sorted_signed_sums(integers, grid, basis):
    """Of the basis (b, C) of each channel, added with either sign: the sum of this rank."""
    signs = np.array(list(itertools.product((-1, 1), repeat=len(basis))))
    levels_CL = np.sort((signs @ basis).T, axis=1)
    rows = integers.astype(int).reshape(len(levels_CL), -1)
    return np.take_along_axis(levels_CL, rows, axis=1).reshape(integers.shape)


PARTS = {
    "affine": ("step", "zero_point"),
    "interval": ("scale",),
    "basis": ("basis",),
    "distribution": ("step",),
    "nested": ("scale",),
}
VALUES = {
    "affine": lambda integers, grid, step, zero_point: step * (integers - zero_point),
    "interval": lambda integers, grid, scale: scale * (2 * integers / (2 ** grid["bits"] - 1) - 1),
    "basis": sorted_signed_sums,
    "distribution": lambda integers, grid, step: step * (integers - 2 ** (grid["bits"] - 1) + 0.5),
    # Half of what the bits that are left out can hold.
    "nested": lambda integers, grid, scale: scale * (integers + (1 - 2.0 ** (grid["bits"] - 8)) / 2),
}


def test_a_student_between_passes_comes_back(tmp_path):
    def capped(channels, outputs):
        layers = [nn.Conv2d(channels, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3)]
        return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs))

    teacher = make_teacher(capped)
    pixels = teacher.spec.standard_to_pixels(structured_images((16, *teacher.spec.shape)))
    student = create("ptq", teacher.spec, {}, Runtime(), passes=["fold", "equalize", "correct-bias"])
    fitted = student.fit(teacher, pixels, Bits(8, 4))
    zsq.save_student(fitted, teacher, tmp_path)
    assert torch.equal(outputs(zsq.load_student(tmp_path), pixels), outputs(fitted, pixels))


def test_quantized_slopes_come_back(tmp_path):
    def sloped(channels, outputs):
        layers = [nn.Conv2d(channels, 8, 3, bias=False), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 8, 3)]
        pooled = [nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs)]
        return nn.Sequential(*layers, *pooled)

    teacher = make_teacher(sloped, task="embed")
    pixels = teacher.spec.standard_to_pixels(structured_images((16, *teacher.spec.shape)))
    fitted = fit("quantface", teacher, pixels, "W4A4")
    assert {"2.weight", "4.weight"} <= {row.name for row in fitted.tensors}
    zsq.save_student(fitted, teacher, tmp_path)
    loaded = zsq.load_student(tmp_path)
    assert torch.equal(outputs(loaded, pixels), outputs(fitted, pixels)) and loaded.task == Embed()
    assert load_file(tmp_path / "student.safetensors")["2.weight"].dtype == torch.uint8


class Unusual(nn.Module):
    """Values and calls of every form that a graph can hold."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((4, 1, 1), 0.5))
        self.conv = nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect")
        self.prelu, self.pool = nn.PReLU(4), nn.AdaptiveMaxPool2d((None, 4))
        self.norm = nn.GroupNorm(2, 4)
        self.deep = nn.ModuleDict({"block1-0": nn.Linear(16, 5, bias=False)})

    def forward(self, x):
        x = self.norm(self.prelu(self.conv(x)) * self.scale)
        x = self.pool(F.pad(x, (1, 1, 0, 0), value=float("-inf")).clamp(min=-1e3))
        left, right = x[..., ::2, :].chunk(2, dim=1)
        x = torch.cat([left + right.mean((2, 3), keepdim=True), right.float()], 1)
        return self.deep["block1-0"](F.avg_pool2d(x, (2, 2)).reshape(x.shape[0], -1)) / 2


def test_a_graph_of_every_form_comes_back_without_the_code_of_its_network(tmp_path):
    teacher = Teacher("unusual", Unusual(), image_spec(size=(8, 8)), 5, "0" * 64)
    pixels = teacher.spec.standard_to_pixels(structured_images((4, *teacher.spec.shape)))
    fitted = fit("ptq", teacher, pixels, "W8A8")
    zsq.save_student(fitted, teacher, tmp_path)
    assert "Unusual" not in (tmp_path / "student.json").read_text()
    assert torch.equal(outputs(zsq.load_student(tmp_path), pixels), outputs(fitted, pixels))


def test_what_cannot_be_saved_is_refused_before_and_after_the_fit(digits, tmp_path, monkeypatch):
    class Own(nn.ReLU):
        def forward(self, x):
            return torch.erf(x)

    teacher = Teacher("own", nn.Sequential(nn.Conv2d(1, 4, 3), Own(), nn.Flatten()), digits.spec, 4, "0" * 64)
    unlisted = dict(vocabulary.OPERATIONS)
    del unlisted["erf"]
    monkeypatch.setattr(vocabulary, "OPERATIONS", unlisted)
    with pytest.raises(
        UntraceableError, match=r"the operation aten.erf.default \(node 'erf'\) cannot be saved"
    ):
        check_saveable(teacher)

    class Quantizer(FakeQuantizer):
        pass

    fitted = fit("ptq", digits, torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
    network = copy.deepcopy(fitted.network)
    network.conv1.weight_quantizer.__class__ = Quantizer
    with pytest.raises(UntraceableError, match=r"the module QuantConv2d \('conv1'\) cannot be saved"):
        zsq.save_student(type(fitted)(**{**vars(fitted), "network": network}), digits, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_network_that_hides_something_is_not_written(digits, saved, tmp_path):
    fitted = zsq.load_student(saved)
    fitted.network.conv1.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(UntraceableError, match="does not give the outputs of the fitted one"):
        zsq.save_student(fitted, digits, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_student_is_not_written_over(digits, saved):
    before = [path.read_bytes() for path in sorted(saved.iterdir())]
    student = zsq.load_student(saved)
    with pytest.raises(OptionError, match=r"a student is at .*student\.json already; expected a new --out"):
        zsq.save_student(student, digits, saved)
    assert before == [path.read_bytes() for path in sorted(saved.iterdir())]


def test_a_kill_between_the_files_leaves_no_student(digits, images, saved, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("zsq.saved.saving.atomic_write_text", killed)
    fitted, new = zsq.load_student(saved), tmp_path / "new"
    with pytest.raises(KeyboardInterrupt):
        zsq.save_student(fitted, digits, new)
    with pytest.raises(StudentFileError, match=r"student.json: No such file.*quantize again"):
        zsq.load_student(new)
    monkeypatch.undo()
    zsq.save_student(fitted, digits, new)
    assert torch.equal(outputs(zsq.load_student(new), images), outputs(fitted, images))


def test_from_the_command_line(capsys, tmp_path, images):
    called = ["quantize", "--teacher", "embedded:digits", "--images", "embedded:digits:train", "--count", 16]
    called += ["--student", "cfws", "--bits", "W8A8", "--out"]
    outcome = call(capsys, *called, tmp_path / "new" / "a.safetensors")
    assert outcome.status == 0, outcome.err
    *table, cost, tensors, record, last = outcome.out.splitlines()
    loaded = zsq.load_student(record)
    assert len(table) == len(loaded.tensors) and table[0] == "conv1.weight: weight, 8 bits, 16 scales"
    assert cost == student_cost(loaded).summary() and last.startswith("cfws W8A8,")
    assert [tensors, record] == [str(tmp_path / "new" / f"a.{end}") for end in ("safetensors", "json")]
    stored = json.loads((tmp_path / "new" / "a.json").read_text())
    assert stored["cost"]["bit_operations"] == student_cost(loaded).bit_operations
    assert stored["teacher"]["name"] == "embedded:digits"

    again = call(capsys, *called, tmp_path / "new" / "a.json")
    assert again.status == 2 and "already; expected a new --out" in again.complaint()
    (tmp_path / "file").touch()
    blocked = call(capsys, *called, tmp_path / "file")
    assert blocked.status == 2 and "is a file; expected a folder" in blocked.complaint()
