"""Which layer of a student hurts."""

import copy
import dataclasses

import pytest
import torch
from tiny_students import fit
from torch import nn
from toys import image_spec

import zsq
from zsq.contract import Teacher
from zsq.core.errors import MismatchError
from zsq.core.runtime import Runtime
from zsq.measure.layernoise import layer_noise
from zsq.report.layers import layer_lines, layers_page, worst_grid
from zsq.tasks.detect import Detect


class TwoHeads(nn.Module):
    """Two outputs of one trunk; no batch norm, so that a test can compute everything itself."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        return {"boxes": self.boxes(x), "scores": self.scores(x)}


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return Teacher("toy", TwoHeads(), image_spec(size=(8, 8)), None, "0" * 64, Detect())


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(1))


@pytest.fixture(scope="module")
def fitted(teacher, pixels):
    return fit("ptq", teacher, pixels, first_last=None)


def decibels(found, wanted):
    pairs = [(found[name].double(), wanted[name].double()) for name in wanted]
    return min(10 * torch.log10(t.square().sum() / (s - t).square().sum()).item() for s, t in pairs)


@torch.no_grad()
def test_the_ratios_are_those_of_the_network_with_one_layer_changed_by_hand(teacher, fitted, pixels):
    noise = layer_noise(fitted, teacher, pixels, Runtime())
    rows = {row.layer: row for row in noise.layers}
    norm = teacher.spec.pixels_to_norm(pixels)
    wanted = teacher.network(norm)
    layer = fitted.network.get_submodule("second")
    changed = copy.deepcopy(teacher.network)
    changed.second.weight.copy_(layer.quantized_weight)
    assert rows["second"].weights == pytest.approx(decibels(changed(norm), wanted), abs=0.01)
    quantizer = layer.input_quantizer
    changed.second.register_forward_pre_hook(lambda module, inputs: quantizer(inputs[0]))
    assert rows["second"].both == pytest.approx(decibels(changed(norm), wanted), abs=0.01)
    assert noise.sqnr == pytest.approx(decibels(fitted.network(norm), wanted), abs=0.01)
    assert rows["first"].activations is None and rows["first"].weights == rows["first"].both
    assert rows["first"].own == pytest.approx(rows["first"].up_to)
    assert [row.both for row in noise.layers] == sorted(row.both for row in noise.layers)


def test_ranges_and_the_share_clipped(teacher, fitted, pixels):
    rows = {row.layer: row for row in layer_noise(fitted, teacher, pixels, Runtime()).layers}
    weight, activation = rows["second"].tensors
    values = teacher.network.first(teacher.spec.pixels_to_norm(pixels)).relu()
    assert (weight.name, activation.name, weight.bits) == ("second.weight", "second.input", 4)
    assert activation.low == 0 and activation.high == pytest.approx(values.max().item())
    assert activation.clipped == pytest.approx(
        (values > activation.grid_high).float().mean().item(), abs=1e-6
    )


def test_a_layer_that_is_made_worse_stands_first(teacher, fitted, pixels):
    for name in ("first", "second"):
        worse = dataclasses.replace(fitted, network=copy.deepcopy(fitted.network))
        quantizer = worse.network.get_submodule(name).weight_quantizer
        quantizer.step.mul_(2)
        assert layer_noise(worse, teacher, pixels, Runtime()).layers[0].layer == name


def test_fewer_layers_are_those_of_the_lowest_own_ratio(teacher, fitted, pixels):
    rows = layer_noise(fitted, teacher, pixels, Runtime(), layers=1).layers
    assert [row.both is None for row in rows] == [False, True, True, True]
    assert rows[0].own == min(row.own for row in rows)


def test_networks_that_passes_changed_are_compared_with_what_the_passes_make(digits, images):
    from zsq.students import create
    from zsq.widths import Bits

    passes = ("fold", "equalize", "correct-bias")
    student = create("ptq", digits.spec, {}, Runtime(), passes=passes)
    noise = layer_noise(student.fit(digits, images, Bits.parse("W8A8")), digits, images, Runtime())
    assert noise.sqnr > 25 and min(row.both for row in noise.layers) > noise.sqnr


def test_students_of_other_layers_are_refused(digits, images):
    with pytest.raises(MismatchError, match="such as ptq"):
        layer_noise(fit("cfws", digits, images), digits, images, Runtime())


def test_scales_that_moved_from_a_layer_norm_into_the_next_layer_are_seen(pixels):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.LayerNorm(8), nn.Linear(8, 5))
    teacher = Teacher("toy", network, image_spec(size=(8, 8)), 5, "0" * 64)
    fitted = fit("ptq", teacher, pixels)
    assert layer_noise(fitted, teacher, pixels, Runtime()).sqnr > 5
    fitted.network.get_parameter("2.weight").mul_(1.2)
    with pytest.raises(MismatchError, match="moves scales between layers"):
        layer_noise(fitted, teacher, pixels, Runtime())


def test_images_that_are_enlarged_before_the_network(pixels):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 5))
    spec = image_spec(size=(8, 8), input_size=(16, 16))
    teacher = Teacher("toy", network, spec, 5, "0" * 64)
    assert layer_noise(fit("ptq", teacher, pixels), teacher, pixels, Runtime()).sqnr > 5


def test_another_teacher_is_refused(digits, images):
    fitted = fit("ptq", digits, images)
    other = dataclasses.replace(digits, network=copy.deepcopy(digits.network))
    nn.init.normal_(other.network.block1.conv1.weight)
    with pytest.raises(MismatchError, match="is not near the teacher's"):
        layer_noise(fitted, other, images, Runtime())


def test_a_page_lines_and_the_worst_of_two_sources(teacher, fitted, pixels):
    noise = layer_noise(fitted, teacher, pixels, Runtime())
    page = layers_page(noise)
    worst = noise.layers[0].layer
    assert "<svg" in page and f'<td class="">{worst}</td>' in page and "http-equiv" in page
    assert any(line.startswith(f"| {worst} |") for line in layer_lines(noise))
    grid = worst_grid({"noise": noise, "real": noise})
    assert grid.header == ("", "real", "noise") and grid.lines[0][1].startswith(worst)


def test_from_the_command_line_and_from_python(tmp_path, monkeypatch, capsys):
    from commands import call

    monkeypatch.chdir(tmp_path)
    train = "embedded:digits:train"
    zsq.quantize("embedded:digits", train, "ptq", "W4A4", count=16, out="student")
    outcome = call(capsys, "inspect", "student", "--images", train, "--count", "8", "--html", "layers.html")
    noise = zsq.inspect_student("student", train, count=8)
    assert outcome.out.splitlines()[:-1] == layer_lines(noise) and (tmp_path / "layers.html").is_file()
    assert "forward passes, about" in outcome.err
    refused = call(capsys, "inspect", "student", "--count", "8")
    assert "--count 8 with student" in refused.err
    with pytest.raises(MismatchError, match="which the student was fitted to"):
        zsq.inspect_student("student", train, teacher="embedded:digits-detector")


class OneHead(TwoHeads):
    def forward(self, x):
        return self.boxes(self.second(self.first(x).relu()).relu())


def test_a_teacher_with_more_outputs_is_refused(teacher, pixels):
    """As a card with another `output` has, over the same weights."""
    network = OneHead()
    network.load_state_dict(teacher.network.state_dict())
    one = dataclasses.replace(teacher, network=network)
    student = fit("ptq", one, pixels, first_last=None)
    found = r"student ptq gives a tensor \(1, 4, 8, 8\), and the teacher boxes \(1, 4, 8, 8\), scores"
    with pytest.raises(MismatchError, match=found):
        layer_noise(student, teacher, pixels, Runtime())
    assert layer_noise(student, one, pixels, Runtime()).layers
