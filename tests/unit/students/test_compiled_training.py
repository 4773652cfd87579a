"""Trained students under torch.compile: one graph, which further fits find."""

import functools

import pytest
import torch
from tiny_students import outputs

from zsq.core.runtime import Runtime
from zsq.fitting.trained import TrainedStudent
from zsq.students import STUDENTS, create
from zsq.widths import Bits

SHORT = {"iterations": 2, "batch": 16}
OPTIONS = {"qfd": {"teacher_iterations": 2}}
# quantface trains embedding networks alone.
TRAINED = sorted(
    name for name, made in STUDENTS.items() if issubclass(made, TrainedStudent) and name != "quantface"
)


@pytest.mark.parametrize("name", TRAINED)
def test_training_is_one_graph_for_all_fits(tiny_teacher, monkeypatch, name):
    # Without inductor's minutes of C++: the capture, which is ours, is what can break.
    captured = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", captured)
    pixels = torch.randint(0, 256, (32, *tiny_teacher.spec.shape), dtype=torch.uint8)
    eager, student = (
        create(name, tiny_teacher.spec, SHORT | OPTIONS.get(name, {}), Runtime(compile=flag))
        for flag in (False, True)
    )
    results = [one.fit(tiny_teacher, pixels, Bits(4, 4)) for one in (eager, student)]
    torch.testing.assert_close(outputs(results[0], pixels), outputs(results[1], pixels), rtol=0.02, atol=0.1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.utils.counters.clear()
    student.fit(tiny_teacher, pixels, Bits(4, 4), seed=1)
    assert not torch._dynamo.utils.counters["stats"].get("unique_graphs", 0), "nothing is compiled again"
