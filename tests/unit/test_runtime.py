"""Static rules of the runtime: what `auto` becomes, what is refused, what is restored."""

from contextlib import nullcontext

import pytest
import torch

from zsq.errors import OptionError
from zsq.runtime import COMPILE_BREAK_EVEN_GFLOPS, Runtime

LONG, SHORT = 2 * COMPILE_BREAK_EVEN_GFLOPS, COMPILE_BREAK_EVEN_GFLOPS / 2


@pytest.fixture
def cpu_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("capability", "compile", "gflops", "compiles"),
    [
        ("AVX2", "auto", LONG, True),
        ("AVX2", "auto", SHORT, False),
        ("AVX512", "auto", LONG, False),
        ("AVX2", "off", LONG, False),
        ("AVX512", "on", 0.0, True),
    ],
)
def test_compilation_follows_capability_and_cost(
    monkeypatch, cpu_only, capability, compile, gflops, compiles
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert Runtime.resolve(compile=compile, total_gflops=gflops).compile is compiles


def test_auto_is_fp32_on_the_device_that_is_there(monkeypatch, cpu_only):
    assert Runtime.resolve() == Runtime("cpu", "fp32", False, None)
    assert Runtime.resolve(precision="bf16", threads=3) == Runtime("cpu", "bf16", False, 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Runtime.resolve().device == "cuda"
    assert Runtime.resolve(device="cuda:1", total_gflops=LONG) == Runtime("cuda:1", "fp32", True, None)
    assert Runtime.resolve(device="cpu").device == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "--precision fp16; expected one of auto, fp32, bf16"),
        ({"compile": "yes"}, "--compile yes; expected one of auto, on, off"),
        ({"threads": 0}, "--threads 0; expected at least 1"),
        ({"device": "gpu"}, "--device gpu; expected cpu, cuda or cuda:N"),
        ({"device": "meta"}, "--device meta; expected cpu, cuda or cuda:N"),
        ({"device": "cuda"}, "--device cuda; .* use --device cpu"),
    ],
)
def test_what_cannot_be_is_refused(cpu_only, options, message):
    with pytest.raises(OptionError, match=message):
        Runtime.resolve(**options)


def test_autocast_is_bf16_for_convolutions_only_where_asked():
    images, conv = torch.randn(1, 2, 4, 4), torch.nn.Conv2d(2, 2, 3)
    assert isinstance(Runtime().autocast(), nullcontext)
    with Runtime().autocast():
        assert conv(images).dtype == torch.float32
    with Runtime(precision="bf16").autocast():
        assert conv(images).dtype == torch.bfloat16


def test_only_a_compiling_runtime_compiles(monkeypatch):
    def function():
        return 1

    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append((function, options)))
    assert Runtime().compiled(function) is function and asked == []
    Runtime(compile=True).compiled(function)
    assert asked == [(function, {"dynamic": False})]


@pytest.mark.parametrize("threads", [None, 2])
def test_threads_are_restored_even_after_an_error(threads):
    before = torch.get_num_threads()
    runtime = Runtime(threads=threads)
    with pytest.raises(ValueError), runtime.threads_set():
        assert torch.get_num_threads() == (threads or before)
        raise ValueError
    assert torch.get_num_threads() == before


def test_the_record_holds_the_threads_in_force():
    in_force = torch.get_num_threads()
    assert Runtime().record() == {"device": "cpu", "precision": "fp32", "compile": False, "threads": in_force}
    assert Runtime(threads=7).record()["threads"] == 7
