"""The one table of operations: a new line in it is all that an operation needs."""

import pytest
import torch
from tiny_students import fit, outputs
from torch import nn
from toys import conv_bn, head, make_teacher, structured_images

import zsq
from zsq.core.errors import MismatchError, UntraceableError
from zsq.engine.moments import Rules
from zsq.engine.weights import estimated
from zsq.graph import vocabulary
from zsq.graph.vocabulary import Operation
from zsq.saved.saving import check_saveable


class Asinh(nn.Module):
    def __init__(self, channels, outputs):
        super().__init__()
        self.body, self.last, self.head = conv_bn(channels, 8), nn.Conv2d(8, 8, 3), head(8, outputs)

    def forward(self, x):
        return self.head(self.last(torch.asinh(self.body(x))))


def test_an_operation_is_added_by_one_line(monkeypatch, tmp_path):
    teacher = make_teacher(Asinh)
    pixels = teacher.spec.standard_to_pixels(structured_images((16, *teacher.spec.shape)))
    assert "asinh" not in vocabulary.OPERATIONS
    with pytest.raises(UntraceableError, match=r"aten\.asinh\.default.*cannot be saved"):
        check_saveable(teacher)
    with pytest.raises(MismatchError, match=r"aten\.asinh\.default behind layer 'body\.0'"):
        estimated(teacher, Rules(), "this test")

    monkeypatch.setitem(vocabulary.OPERATIONS, "asinh", Operation("activation", "elementwise"))
    check_saveable(teacher)
    fitted = fit("ptq", teacher, pixels)
    zsq.save_student(fitted, teacher, tmp_path)
    assert torch.equal(outputs(zsq.load_student(tmp_path), pixels), outputs(fitted, pixels))
    network, layers = estimated(teacher, Rules(), "this test")
    assert len(layers) == 3
    noise = torch.randn(2000, *teacher.spec.shape, generator=torch.Generator().manual_seed(0)).double()
    inner = {}
    network.get_submodule("last").register_forward_hook(lambda *given: inner.setdefault("values", given[2]))
    network(teacher.spec.standard_to_norm(noise))
    sampled = inner["values"].transpose(0, 1).flatten(1)
    torch.testing.assert_close(layers["last"].mean, sampled.mean(1), rtol=0, atol=0.1 * sampled.std().item())


def test_every_line_names_an_operation_of_aten_or_a_module():
    own = {"capped_relu"}
    for name, known in vocabulary.OPERATIONS.items():
        assert name in own or hasattr(torch.ops.aten, name), name
        assert known.kind != "layer" or name in vocabulary.LAYERS.values(), name
    assert set(vocabulary.MODULES.values()) <= set(vocabulary.OPERATIONS)
