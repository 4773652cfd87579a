"""What the engine reads of outputs in any nesting."""

import pytest
import torch
from toys import make_teacher
from user_networks import WRAPPED, Nested

from zsq.engine.finite import place_sums
from zsq.engine.objectives import TeacherPass, output_range
from zsq.engine.outputs import finite, flat, in_float32, joined, per_image, tensors
from zsq.engine.statistics import TappedTeacher


@pytest.mark.parametrize(("kind", "count"), [("attribute", 1), ("dict", 1), ("tuple", 1), ("dataclass", 3)])
def test_every_nesting_gives_its_tensors_of_each_image(kind, count):
    logits, images = torch.randn(4, 5), torch.randn(4, 3, 8, 8)
    found = per_image(WRAPPED[kind](logits, images), 4)
    assert len(found) == count and all(len(tensor) == 4 for tensor in found)
    assert torch.equal(found[0], logits)


def test_one_tensor_stays_what_it_is():
    logits = torch.randn(4, 5)
    assert per_image(logits, 4) is logits and flat(logits) == (logits,)
    assert per_image(WRAPPED["boxes"](logits, None), 4) == ()


def test_chunks_are_put_together_again():
    parts = [(torch.ones(2, 3), torch.ones(2, 1)), (torch.zeros(1, 3), torch.zeros(1, 1))]
    assert [tuple(tensor.shape) for tensor in joined(parts)] == [(3, 3), (3, 1)]
    assert joined([(torch.ones(2, 3),), ()]) == ()
    assert joined([torch.ones(2, 3), torch.ones(1, 3)]).shape == (3, 3)


def test_half_precision_and_nan_are_seen_inside():
    assert in_float32((torch.ones(2, dtype=torch.bfloat16),))[0].dtype == torch.float32
    assert finite({"a": [torch.ones(2), torch.arange(3)]})
    assert not finite({"a": [torch.ones(2), torch.tensor(torch.nan)]})
    assert len(list(tensors([{"a": torch.ones(1)}, (torch.ones(2), None, 3)]))) == 2


def test_the_range_of_outputs_is_that_of_each_tensor():
    maps = torch.tensor([[[[0.0, 4.0]]], [[[1.0, 1.5]]]])
    logits = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    images = torch.zeros(2, 3, 4, 4)
    alone = [output_range(TeacherPass(images, each, [], None)).item() for each in (maps, logits)]
    assert alone == [pytest.approx(-2.25), pytest.approx(-2.0)]
    assert output_range(TeacherPass(images, (maps, logits), [], None)).item() == pytest.approx(-2.125)
    assert output_range(TeacherPass(images, (), [], None)).item() == 0
    assert output_range(TeacherPass(images, (torch.zeros(2, 0),), [], None)).item() == 0


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_tapped_teacher_in_chunks_is_the_whole(kind):
    teacher = make_teacher(lambda channels, outputs: Nested(WRAPPED[kind]), task="other")
    tapped, images = TappedTeacher(teacher), torch.randn(5, *teacher.spec.shape, requires_grad=True)
    outputs, layers = tapped(images)
    place_sums(TeacherPass(images, outputs, layers, None))
    tapped.in_chunks.most = 2
    again, parts = tapped(images)
    for one, other in zip(flat(outputs), flat(again), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(layers, parts, strict=True):
        torch.testing.assert_close(one.s2_NC, other.s2_NC)
