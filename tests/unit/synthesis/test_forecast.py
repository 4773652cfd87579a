"""What a run takes in memory is said, and a run that does not fit is refused before anything is written."""

import pytest
import torch
from commands import call
from toys import make_teacher

from zsq.config import GenerateConfig, RuntimeConfig
from zsq.core.errors import MemoryShortageError
from zsq.engine.estimate import STEP_BYTES_PER_VALUE, image_bytes, score_bytes, step_bytes, training_bytes
from zsq.generators import available_methods
from zsq.synthesis import forecast, synthesize
from zsq.synthesis.forecast import Memory
from zsq.synthesis.resolved import resolve
from zsq.teacher import load_teacher

VALUES = 2 * (8 * 8 * 8 + 12 * 4 * 4) + 8 * 8 * 8 + 12 * 4 * 4 + 12 + 12 + 5  # of the toy's leaves at 16 px


def needed_by(job):
    return Memory.of(job.method, job.plan)


def config(method="zeroq", **changes):
    runtime = RuntimeConfig(threads=1, compile="off")
    values = {"teacher": "toy", "method": method, "count": 8, "batch": 4, "shard_size": 4, "iterations": 2}
    return GenerateConfig(**({**values, "runtime": runtime} | changes))


def test_a_step_is_what_layers_put_out(tiny_teacher):
    assert step_bytes(tiny_teacher, 4) == STEP_BYTES_PER_VALUE * 4 * VALUES
    assert score_bytes(tiny_teacher, 4) == 3 * 4 * 4 * 8 * 8 * 8
    assert image_bytes(tiny_teacher, 4) == 4 * 4 * 4 * 3 * 16 * 16


def test_large_batches_go_in_chunks(tiny_teacher, monkeypatch):
    monkeypatch.setattr("zsq.engine.chunked.MEMORY_BUDGET", 8 * 3 * VALUES)
    assert step_bytes(tiny_teacher, 99) == STEP_BYTES_PER_VALUE * 3 * VALUES
    assert step_bytes(tiny_teacher, 100) == STEP_BYTES_PER_VALUE * 2 * VALUES


def test_training_counts_weights_with_gradient_and_moments():
    network = torch.nn.Linear(3, 7)
    assert training_bytes(network, [torch.zeros(2, 3)], 5) == STEP_BYTES_PER_VALUE * 5 * 7 + 16 * 28


def memory(tmp_path, teacher=None, **changes):
    return needed_by(resolve(config(**changes), tmp_path, teacher or make_teacher())).host


def test_what_decides_the_memory(tmp_path):
    base = memory(tmp_path)
    assert memory(tmp_path, batch=8, shard_size=8) > base
    assert memory(tmp_path, count=800) == base
    assert memory(tmp_path, method="dgh", count=800) > memory(tmp_path, method="dgh")
    assert memory(tmp_path, method="noise") < base
    for name in ("genie", "gdfq"):
        assert memory(tmp_path, method=name) > 2 * base


@pytest.mark.parametrize(
    "name", [name for name, cls in available_methods().items() if not cls.facts.needs_real]
)
def test_every_method_has_an_estimate(name, tmp_path):
    facts = available_methods()[name].facts
    teacher = None
    if facts.needs_boxes or facts.needs_attention:
        teacher = load_teacher(f"embedded:digits-{'detector' if facts.needs_boxes else 'vit'}")
    assert memory(tmp_path, teacher, method=name, iterations=None) > 0


def run(tmp_path, free, monkeypatch, **changes):
    monkeypatch.setattr(forecast, "available_bytes", lambda: free)
    return synthesize.generate(config(**changes), tmp_path / "run", teacher=make_teacher())


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ("zeroq", r"lower --batch \(now 4\) or --shard-size \(now 4\)"),
        ("dgh", r"lower --batch \(now 4\) or --count \(now 8: the whole set is made together\)"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(tmp_path, monkeypatch, method, advice):
    said = (
        rf"{method} on toy needs about .* GB of memory; expected at most the 0.0 GB that are free; {advice}"
    )
    with pytest.raises(MemoryShortageError, match=said):
        run(tmp_path, 1000, monkeypatch, method=method)
    assert not (tmp_path / "run").exists()
    assert MemoryShortageError.exit_code == 1


def test_every_process_of_this_machine_counts(tmp_path, monkeypatch):
    job = resolve(config(), tmp_path, make_teacher())
    monkeypatch.setattr(forecast, "available_bytes", lambda: needed_by(job).host * 3 // 2)
    forecast.check_memory(job, 1)
    with pytest.raises(MemoryShortageError):
        forecast.check_memory(job, 2)


def test_a_device_has_memory_of_its_own(tmp_path, monkeypatch):
    job = resolve(config(), tmp_path, make_teacher())
    object.__setattr__(job.runtime, "device", "cuda:0")
    needed = needed_by(job)
    assert needed.host > 0 and needed.device > 0
    monkeypatch.setattr(forecast, "device_bytes", lambda device: needed.device - 1)
    with pytest.raises(MemoryShortageError, match="of memory of cuda:0"):
        forecast.check_memory(job, 1)


@pytest.mark.parametrize(("device", "together"), [("cuda", 2), ("cuda:0", 4)])
def test_processes_share_the_memory_of_a_device(tmp_path, monkeypatch, device, together):
    job = resolve(config(), tmp_path, make_teacher())
    object.__setattr__(job.runtime, "device", device)
    needed = needed_by(job).device
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(forecast, "device_bytes", lambda device: needed * together)
    forecast.check_memory(job, 4)
    monkeypatch.setattr(forecast, "device_bytes", lambda device: needed * together - 1)
    with pytest.raises(MemoryShortageError):
        forecast.check_memory(job, 4)


def test_running_out_at_work_is_one_line_on_the_command_line(capsys, tmp_path, monkeypatch):
    def fails(self, group, log):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(available_methods()["noise"], "synthesize", fails)
    outcome = call(
        capsys, "generate", "--teacher", "embedded:digits", "--method", "noise", "--out", tmp_path / "run"
    )
    assert outcome.status == 1
    last = outcome.err.splitlines()[-1]
    assert last == "zsq: out of memory; lower --batch (now 128) or --shard-size (now 256)"


def test_other_commands_say_it_too(capsys, monkeypatch):
    def fails(folder):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("zsq.api.inspect", fails)
    outcome = call(capsys, "inspect", "somewhere")
    assert (outcome.status, outcome.complaint()) == (1, "out of memory; use fewer images or a smaller batch")
