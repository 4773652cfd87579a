"""The cost of a teacher's pass, counted by hand."""

import pytest
import torch
from toys import image_spec, make_teacher

from zsq.core.runtime import Runtime
from zsq.engine import estimate


@pytest.mark.parametrize("size", [(16, 16), (8, 20)])
def test_operations_are_two_per_multiply_add(size):
    height, width = size
    teacher = make_teacher(spec=image_spec(size=size), outputs=5)
    first = 3 * 9 * 8 * (height // 2) * (width // 2)
    second = 8 * 9 * 12 * (height // 4) * (width // 4)
    assert estimate.forward_gflops(teacher) == pytest.approx(2 * (first + second + 12 * 5) / 1e9)


@pytest.mark.parametrize(("batch", "measured"), [(4, 4), (64, 64), (256, 64)])
def test_seconds_are_three_times_the_faster_forward_pass(monkeypatch, batch, measured):
    teacher = make_teacher()
    sizes, clock = [], iter([10.0, 18.0, 20.0, 26.0])
    teacher.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(clock))
    assert estimate.seconds_per_image_iteration(teacher, batch) == pytest.approx(3 * 6.0 / measured)
    assert sizes == [1, 1, measured, measured]  # one image each for its size and to warm up
    assert not torch.is_grad_enabled() or all(p.grad is None for p in teacher.network.parameters())


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (Runtime(), 6000.0),
        (Runtime(compile=True), 60 + 6000 / 1.4),
        (Runtime(precision="bf16", compile=True), 60 + 6000 / 2),
    ],
)
def test_estimates_know_what_compiling_gains_and_costs(monkeypatch, runtime, expected):
    monkeypatch.setattr(estimate, "seconds_per_image_iteration", lambda teacher, batch: 2.0)
    assert estimate.estimated_seconds(make_teacher(), 64, 3000, runtime) == pytest.approx(expected)
