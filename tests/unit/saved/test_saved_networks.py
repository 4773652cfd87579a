"""Networks of every layer, product and output as files: the same outputs and cost, and what is refused."""

import json

import pytest
import torch
from forged_students import complaint, forge
from safetensors.torch import load_file, save_file
from tiny_students import fit, outputs
from torch import nn
from toys import image_spec, structured_images
from user_networks import Pair, SelfAttention, SignalStrip, Transposed, Upscaler, Volume

import zsq
from zsq.contract import Teacher
from zsq.core.errors import UntraceableError
from zsq.graph import vocabulary
from zsq.graph.vocabulary import Operation
from zsq.saved.cost import student_cost
from zsq.saved.saving import check_saveable
from zsq.saved.stored_graph import move_to
from zsq.tasks import TASKS
from zsq.tasks.image import Image
from zsq.tasks.nesting import named_tensors

FAST = {"first_last": None, "observer": "minmax", "weight_observer": "minmax"}


class WithZeros(nn.Module):
    """Makes a tensor of its own, on its input's device."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2), nn.Linear(6, 5)

    def forward(self, x):
        pooled = self.conv(x).mean((2, 3))
        extra = torch.zeros(len(x), 2, device=x.device)
        return self.head(torch.cat([pooled, extra], 1))


# Network -> what builds it, shape of its images, task, number of outputs.
NETWORKS = {
    "signal": (SignalStrip, (4, 1, 64), "classify", 5),
    "volume": (Volume, (8, 12, 12), "classify", 5),
    "transposed": (Transposed, (3, 16, 16), "classify", 5),
    "transposed-groups": (lambda: Transposed(groups=2), (3, 16, 16), "classify", 5),
    "attention": (SelfAttention, (3, 16, 16), "classify", 5),
    "image": (Upscaler, (3, 12, 12), "image", 3),
    "nested": (Pair, (3, 16, 16), "other", None),
    "zeros": (WithZeros, (3, 16, 16), "classify", 5),
}


def a_teacher(kind):
    build, shape, task, num_outputs = NETWORKS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build()
    spec = image_spec(shape[0], shape[1:])
    return Teacher(kind, network.eval(), spec, num_outputs, "0" * 64, task=TASKS[task]())


def a_student(kind, bits="W8A8", name="ptq", count=4):
    teacher = a_teacher(kind)
    pixels = teacher.spec.standard_to_pixels(structured_images((count, *teacher.spec.shape)))
    return fit(name, teacher, pixels, bits, **(FAST if name == "ptq" else {})), teacher, pixels


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_layer_and_output_comes_back(tmp_path, kind):
    fitted, teacher, pixels = a_student(kind)
    check_saveable(teacher)
    zsq.save_student(fitted, teacher, tmp_path)
    loaded = zsq.load_student(tmp_path)
    found, expected = outputs(loaded, pixels), outputs(fitted, pixels)
    assert type(found) is type(expected)
    found, expected = dict(named_tensors(found)), dict(named_tensors(expected))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert student_cost(loaded) == student_cost(fitted) and loaded.task == teacher.task
    for name, tensor in expected.items():
        assert (
            f"{name or 'a tensor'} {(1, *tensor.shape[1:])}" in zsq.inspect(tmp_path)[1] or tensor.dim() == 0
        )


def test_the_fields_of_a_task_come_back(tmp_path):
    fitted, teacher, _ = a_student("image")
    task = Image(psnr_on="y", border=4, output_range=(0.0, 255.0))
    zsq.save_student(type(fitted)(**{**vars(fitted), "task": task}), teacher, tmp_path)
    assert zsq.load_student(tmp_path).task == task


def test_a_weight_of_a_transposed_layer_has_a_step_for_each_output_channel():
    fitted, *_ = a_student("transposed-groups")
    row = next(row for row in fitted.tensors if row.name == "up.weight")
    assert row.num_scales == 12


@pytest.mark.parametrize("bits, activations", [("W4A8", 8), ("W4A32", 32)])
def test_a_product_costs_with_the_widths_of_both_operands(bits, activations):
    cost = student_cost(a_student("attention", bits)[0])
    # 2 heads, 16 positions, 8 numbers of a head.
    assert [product.macs for product in cost.products] == [2 * 16 * 16 * 8] * 2
    widths = [(product.left_bits, product.right_bits) for product in cost.products]
    assert widths == [(activations, activations)] * 2
    layers = {layer.name: layer.macs for layer in cost.layers}
    assert layers["patches"] == 16 * 16 * 48 and layers["head"] == 16 * 5
    assert cost.macs == sum(layers.values()) + 2 * 2 * 16 * 16 * 8
    image = 8 if activations == 8 else 32
    weights = sum(macs * 4 * (image if name == "patches" else activations) for name, macs in layers.items())
    assert cost.bit_operations == weights + 2 * 2 * 16 * 16 * 8 * activations**2


def test_a_transposed_layer_costs_its_inputs_times_its_weights():
    for kind, groups in (("transposed", 1), ("transposed-groups", 2)):
        layers = {layer.name: layer for layer in student_cost(a_student(kind)[0]).layers}
        assert layers["up"].macs == 8 * 8 * 8 * (12 // groups) * 16


def test_a_matrix_times_a_vector_counts():
    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 5)

        def forward(self, x):
            pooled = self.head(x.mean((2, 3)).repeat(1, 2))
            return pooled + (pooled @ pooled.mean(0)).unsqueeze(1)

    teacher = Teacher("vector", Vector(), image_spec(3, (8, 8)), 5, "0" * 64)
    pixels = teacher.spec.standard_to_pixels(structured_images((4, 3, 8, 8)))
    (product,) = student_cost(fit("ptq", teacher, pixels, "W8A8", **FAST)).products
    assert (product.macs, product.left_bits, product.right_bits) == (5, 8, 8)


def test_a_new_operation_is_one_line_of_the_vocabulary(tmp_path, monkeypatch):
    class Unlisted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 5)

        def forward(self, x):
            return self.head(torch.erfc(self.conv(x)).mean((2, 3)))

    teacher = Teacher("unlisted", Unlisted(), image_spec(), 5, "0" * 64)
    pixels = teacher.spec.standard_to_pixels(structured_images((4, *teacher.spec.shape)))
    fitted = fit("ptq", teacher, pixels, "W8A8", **FAST)
    with pytest.raises(UntraceableError, match=r"the operation aten\.erfc\.default .* cannot be saved"):
        check_saveable(teacher)

    monkeypatch.setitem(vocabulary.OPERATIONS, "erfc", Operation("activation", "elementwise"))
    check_saveable(teacher)
    zsq.save_student(fitted, teacher, tmp_path)
    assert torch.equal(outputs(zsq.load_student(tmp_path), pixels), outputs(fitted, pixels))


def test_a_length_that_depends_on_values_is_refused_before_the_fit(monkeypatch):
    class Selecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2)

        def forward(self, x):
            return torch.masked_select(self.conv(x), self.conv(x) > 0)

    monkeypatch.setitem(vocabulary.OPERATIONS, "masked_select", Operation("other"))
    teacher = Teacher("s", Selecting(), image_spec(), None, "0" * 64, task=TASKS["other"]())
    with pytest.raises(UntraceableError, match="no student of this network can be saved"):
        check_saveable(teacher)


def test_infinity_is_for_constants_alone_and_nan_for_nothing(tmp_path):
    fitted, teacher, _ = a_student("attention")
    zsq.save_student(fitted, teacher, tmp_path)
    # Copies: what is loaded may be the file's own memory.
    tensors = {name: t.clone() for name, t in load_file(tmp_path / "student.safetensors").items()}
    (mask,) = (name for name, tensor in tensors.items() if bool(tensor.isinf().any()))
    for name, value in ((mask, torch.nan), ("patches.bias", torch.inf)):
        save_file(tensors, tmp_path / "student.safetensors")
        forge(tmp_path, edit_tensors=lambda held, n=name, v=value: held.update({n: held[n] * 0 + v}))
        assert f"'{name}' holds NaN or infinity" in complaint(tmp_path)


def test_the_devices_of_calls_are_not_in_the_file_and_move_with_the_student(tmp_path):
    fitted, teacher, _ = a_student("zeros")
    zsq.save_student(fitted, teacher, tmp_path)
    named = [node for node in fitted.network.graph.nodes if "device" in node.kwargs]
    nodes = {
        node["name"]: node for node in json.loads((tmp_path / "student.json").read_text())["graph"]["nodes"]
    }
    assert named and all(nodes[node.name]["kwargs"]["device"] == {"device": "cpu"} for node in named)
    moved = move_to(fitted.network, "meta")
    example = torch.zeros(2, 3, 16, 16, device="meta")
    assert moved(example).device.type == "meta"
    assert all(node.kwargs["device"].type == "meta" for node in named)
