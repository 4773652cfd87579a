"""Static rules of the runtime: what `auto` becomes, what is refused, what is restored."""

import importlib
import os
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest
import torch
from commands import alone
from torch._dynamo.testing import CompileCounter
from torch._functorch import config

from zsq.core.errors import OptionError
from zsq.core.runtime import BREAK_EVEN_GFLOPS, Runtime

LONG, MIDDLE, SHORT = 2 * BREAK_EVEN_GFLOPS["fp32"], 1.5 * BREAK_EVEN_GFLOPS["bf16"], 1.0


@pytest.fixture
def cpu_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def processor(monkeypatch, cpu_only):
    """A function that gives the processor fast bfloat16 or takes it away."""

    def with_features(avx512_bf16=False, amx=False, used="AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: used)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)

    with_features()
    return with_features


@pytest.mark.parametrize(
    ("features", "compile", "gflops", "expected"),
    [
        ({}, "auto", LONG, ("fp32", True)),
        ({}, "auto", MIDDLE, ("fp32", False)),
        ({}, "on", SHORT, ("fp32", True)),
        ({"amx": True}, "auto", MIDDLE, ("bf16", True)),
        ({"avx512_bf16": True}, "auto", MIDDLE, ("bf16", True)),
        ({"avx512_bf16": True}, "auto", SHORT, ("fp32", False)),
        ({"avx512_bf16": True, "amx": True, "used": "AVX2"}, "auto", LONG, ("fp32", True)),
        ({"avx512_bf16": True}, "off", LONG, ("fp32", False)),
    ],
)
def test_compilation_and_precision_follow_features_and_cost(processor, features, compile, gflops, expected):
    processor(**features)
    found = Runtime.resolve(compile=compile, total_gflops=gflops)
    assert (found.precision, found.compile) == expected


def test_what_is_asked_for_is_what_is_taken(processor):
    assert Runtime.resolve() == Runtime("cpu", "fp32", False, None)
    assert Runtime.resolve(precision="bf16", threads=3) == Runtime("cpu", "bf16", False, 3)
    processor(amx=True)
    assert Runtime.resolve(precision="fp32", total_gflops=LONG) == Runtime("cpu", "fp32", True, None)


@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bf16"), ((7, 5), "fp32")])
def test_cuda_where_it_is_there(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert Runtime.resolve().device == "cuda"
    assert Runtime.resolve(device="cuda:1", total_gflops=LONG) == Runtime("cuda:1", precision, True, None)
    assert Runtime.resolve(device="cpu").device == "cpu"
    with pytest.raises(OptionError, match="--device cuda:2; expected cuda:0 to cuda:1, which torch can use"):
        Runtime.resolve(device="cuda:2")


def test_without_a_compiler_a_long_job_runs_uncompiled_and_says_so(processor, monkeypatch):
    cpp_builder = importlib.import_module("torch._inductor.cpp_builder")
    no_compiler = importlib.import_module("torch._inductor.exc").InvalidCxxCompiler()

    def search():
        raise no_compiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", search)
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler found: running uncompiled"):
        assert not Runtime.resolve(total_gflops=LONG).compile
    with pytest.raises(OptionError, match=r"--compile on; expected a C\+\+ compiler"):
        Runtime.resolve(compile="on")


def test_what_cannot_be_compiled_is_said_once_and_runs(monkeypatch):
    def refuse(function, **options):
        def compiled(*args):
            raise torch._dynamo.exc.TorchDynamoException("backend='inductor' raised:\nno such operation\n\n")

        return compiled

    monkeypatch.setattr(torch, "compile", refuse)
    runtime = Runtime(compile=True)
    first, second = runtime.compiled(lambda x: x + 1), runtime.compiled(lambda x: x + 2)
    with pytest.warns(UserWarning, match=r"running uncompiled \(backend.* no such operation\)") as said:
        assert [first(1), first(2), second(1)] == [2, 3, 3]
    assert len(said) == 1 and runtime.failures


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
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append((function(), options)))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "restored afterwards")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    assert Runtime().compiled(function) is function and asked == []
    Runtime(compile=True).compiled(function)
    assert asked == [(1, {"dynamic": False, "options": {"inplace_buffers": False}})]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(Path("somewhere", "zsq", "compiled"))
    Runtime("cuda", compile=True).compiled(function)
    assert asked[1] == (1, {"dynamic": False, "mode": "reduce-overhead"})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_on_a_cpu_small_things_are_computed_again(monkeypatch, device):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    compiled = Runtime(device, compile=True).compiled(lambda: config.ban_recompute_used_far_apart)
    assert compiled() == (device == "cuda") and config.ban_recompute_used_far_apart


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def of(self, x, *, offset=1):
        return self.scale * x + offset


@alone
def test_any_number_of_functions_of_the_same_code_is_compiled(monkeypatch):
    """torch keeps 8 compilations of a piece of code and runs what comes after them uncompiled."""
    counter, compile = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=counter))
    runtime, x = Runtime(compile=True), torch.arange(3.0)
    for scale in range(12):
        assert torch.equal(runtime.compiled(Scaled(scale).of)(x), scale * x + 1)
    for scale in range(12):
        assert torch.equal(runtime.compiled(lambda x, scale=scale: scale * x)(x), scale * x)
    assert counter.frame_count == 24


@pytest.mark.parametrize("threads", [None, 2])
def test_threads_are_restored_even_after_an_error(threads):
    before = torch.get_num_threads()
    runtime = Runtime(threads=threads)
    with pytest.raises(ValueError), runtime.in_force():
        assert torch.get_num_threads() == (threads or before)
        raise ValueError
    assert torch.get_num_threads() == before


def test_the_record_holds_the_threads_in_force():
    in_force = torch.get_num_threads()
    assert Runtime().record() == {"device": "cpu", "precision": "fp32", "compile": False, "threads": in_force}
    assert Runtime(threads=7).record()["threads"] == 7


def test_on_cuda_sums_have_an_order_within_the_context_alone(monkeypatch):
    seen = {}

    def flags():
        cudnn = torch.backends.cudnn
        ordered = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, not cudnn.benchmark
        return {"ordered": all(ordered), "tf32": cudnn.allow_tf32}

    usual = {"ordered": False, "tf32": True}
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for device, exact in product(("cpu", "cuda"), (False, True)):
        with Runtime(device).in_force(exact):
            seen[device, exact] = flags()
        assert flags() == usual
    assert seen["cpu", False] == seen["cpu", True] == usual
    assert seen["cuda", False] == {"ordered": True, "tf32": True}
    assert seen["cuda", True] == {"ordered": True, "tf32": False}
