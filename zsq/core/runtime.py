"""Where and how tensors are computed: device, threads, precision, compilation. Static rules only, so that
the same options give the same bytes: nothing here is measured at run time."""

from __future__ import annotations

import ctypes
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, Literal, cast

import torch

from zsq.core.errors import OptionError

Precision = Literal["fp32", "bf16"]

# Forward GFLOPs of a whole job from which compiling pays: about a minute of cold compilation over what each
# GFLOP then saves (one thread, AVX-512: eager float32 24 a second, compiled 35, compiled bfloat16 70).
BREAK_EVEN_GFLOPS = {"bf16": 2300.0, "fp32": 4600.0}

# A kernel for 16 channels in bfloat16 fills half a register. If it writes over what it reads, each load waits
# for the store before it, and the kernel takes several times as long.
CPU_OPTIONS = {"inplace_buffers": False}

# Held while torch captures a network or looks into its operations. It notes that in globals of the process:
# two threads that do so at once leave them set, and torch compiles nothing from then on.
one_thread = threading.RLock()


def fast_bf16(device: str) -> bool:
    """Whether bfloat16 convolutions are faster than float32 ones: never so where they are emulated.

    CUDA from compute capability 8; x86 with AMX or AVX512-BF16, unless torch was told to leave AVX-512 alone
    (ATEN_CPU_CAPABILITY). Without those they are 12 times slower.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def compiled_folder() -> Path:
    """Where the compiler keeps its results, from now on."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zsq" / "compiled"
    return Path(os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache)))


def has_cpp_compiler() -> bool:
    """Whether torch.compile finds the C++ compiler that it needs on a CPU."""
    compiled_folder()  # before torch chooses one
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


@dataclass(frozen=True)
class Runtime:
    """Resolved runtime of one job; recorded in manifests and compared by `--resume`."""

    device: str = "cpu"
    precision: Precision = "fp32"
    compile: bool = False
    threads: int | None = None
    failures: list[str] = field(default_factory=list, compare=False, repr=False)  # to compile

    @classmethod
    def resolve(
        cls,
        device: str = "auto",
        precision: str = "auto",
        compile: str = "auto",
        threads: int | None = None,
        total_gflops: float = 0.0,
    ) -> Runtime:
        """Turn the command line's `auto` into values.

        A long job is compiled, and computes its convolutions in bfloat16 where that is fast; a short one runs
        as it is, in float32.

        Args:
            total_gflops: forward cost of the whole job, from which `compile="auto"` decides.

        Raises:
            OptionError: a value outside its choices, a device that is not there, or `compile="on"` without a
                C++ compiler.
        """
        for option, value, choices in (
            ("--precision", precision, ("auto", "fp32", "bf16")),
            ("--compile", compile, ("auto", "on", "off")),
        ):
            if value not in choices:
                raise OptionError(f"{option} {value}", f"one of {', '.join(choices)}")
        if threads is not None and threads < 1:
            raise OptionError(f"--threads {threads}", "at least 1")
        device = device_of(device, "--device")
        if torch.device(device).type == "cuda":
            # cuBLAS reads it once, before its first product.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        fastest: Precision = "bf16" if precision != "fp32" and fast_bf16(device) else "fp32"
        compiled = compile == "on" or (compile == "auto" and total_gflops > BREAK_EVEN_GFLOPS[fastest])
        if compiled and device == "cpu" and not has_cpp_compiler():
            if compile == "on":
                raise OptionError("--compile on", "a C++ compiler such as g++", "install one or leave it out")
            warnings.warn("no C++ compiler found: running uncompiled, several times slower", stacklevel=2)
            compiled = False
        chosen = precision if precision != "auto" else fastest if compiled else "fp32"
        return cls(device, "bf16" if chosen == "bf16" else "fp32", compiled, threads)

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 convolutions where asked for; statistics and losses stay fp32 in any case."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` as one compiled graph where this runtime compiles, else unchanged."""
        return Compiled(function, self) if self.compile else function

    def begin_step(self) -> None:
        """Tell a compiled CUDA graph that the results of the last step may be overwritten."""
        # Of a CPU it says nothing, and takes a second to import.
        if self.compile and self.device != "cpu":
            torch.compiler.cudagraph_mark_step_begin()

    def sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """A CPU tensor on this runtime's device, without waiting for the copy."""
        if self.device == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    @contextmanager
    def in_force(self, exact: bool = False) -> Iterator[None]:
        """Run with the chosen number of intra-op threads, and on CUDA with kernels that give the same bytes
        each time; restore what was before. Torch warns of an operation that has no such kernel.

        Args:
            exact: for what is measured: float32 proper. Torch's convolutions on CUDA are TF32 otherwise.
        """
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        _keep_freed_memory()
        try:
            with _deterministic_cuda(self.device, exact):
                yield
        finally:
            torch.set_num_threads(before)

    def record(self) -> dict[str, Any]:
        """As stored in `run.json` and manifests; `threads` is the number in force."""
        return {
            "device": self.device,
            "precision": self.precision,
            "compile": self.compile,
            "threads": self.threads or torch.get_num_threads(),
        }


class Compiled:
    """A function compiled at its first call; where torch cannot, it says so once and runs it as it is."""

    def __init__(self, function: Callable[..., Any], runtime: Runtime) -> None:
        """Keep the compiler's results in the user's cache folder: the next process starts in seconds."""
        compiled_folder()
        self.function, self.failures = function, runtime.failures
        self.compiled = compiled_for(runtime.device, function, cuda_graph=True)

    def __call__(self, *args: Any) -> Any:
        """What `function` returns."""
        from torch._dynamo.exc import TorchDynamoException

        if self.failures:
            return self.function(*args)
        inside = _inside_compiled.set(True)
        try:
            return self.compiled(*args)
        except TorchDynamoException as error:
            reason = " ".join(str(error).strip().splitlines()[:2])
            warnings.warn(f"torch cannot compile this: running uncompiled ({reason})", stacklevel=2)
            self.failures.append(reason)
        finally:
            _inside_compiled.reset(inside)
        return self.function(*args)


_inside_compiled: ContextVar[bool] = ContextVar("inside a compiled function", default=False)


def inside_compiled() -> bool:
    """Whether a compiled function calls this, from outside of its graph."""
    return _inside_compiled.get()


def compiled_for(
    device: str | torch.device, function: Callable[..., Any], cuda_graph: bool = False
) -> Callable[..., Any]:
    """`function`, compiled at its first call. A CUDA graph overwrites results with those of the next call."""
    on_cpu = torch.device(device).type == "cpu"
    how: dict[str, Any] = {"mode": "reduce-overhead"} if cuda_graph else {}
    compiled = torch.compile(
        _with_own_code(function), dynamic=False, **({"options": CPU_OPTIONS} if on_cpu else how)
    )

    def call(*args: Any) -> Any:
        from torch._functorch import config

        # On a CPU it is faster to compute a value again in the backward pass than to read it.
        with config.patch(ban_recompute_used_far_apart=not on_cpu):
            return compiled(*args)

    return call


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function on a copy of its code: torch counts what it compiled by code, and past a limit runs
    the rest uncompiled, so that one method's step would stand in the way of the next one's."""
    if isinstance(function, MethodType):
        return MethodType(_with_own_code(function.__func__), function.__self__)
    assert isinstance(function, FunctionType)
    copy = FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


@contextmanager
def _deterministic_cuda(device: str, exact: bool) -> Iterator[None]:
    """Sums in a fixed order instead of the order in which threads of a GPU arrive, and if `exact` no TF32;
    nothing on a CPU."""
    if torch.device(device).type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, memory = torch.backends.cudnn, cast(Any, torch.utils.deterministic)
    filling = memory.fill_uninitialized_memory
    flags = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, cudnn.allow_tf32 and not exact
    # Memory that is filled before it is written again costs time and changes nothing.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = flags
        memory.fill_uninitialized_memory = filling


def device_of(device: str | torch.device, option: str = "device") -> str:
    """A device as the user gave it: `cpu`, `cuda` or `cuda:N`; `auto` is the GPU where there is one.

    Raises:
        OptionError: anything else, or a GPU that is not there; it calls the device `option`.
    """
    name = str(device)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name in ("cpu", "cpu:0"):
        return "cpu"
    if not re.fullmatch(r"cuda(:\d{1,3})?", name):
        raise OptionError(f"{option} {name}", "cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise OptionError(f"{option} {name}", "a CUDA device that torch can use", f"use {option} cpu")
    count = torch.cuda.device_count()
    if int(name.partition(":")[2] or 0) >= count:
        raise OptionError(f"{option} {name}", f"cuda:0 to cuda:{count - 1}, which torch can use")
    return name


@cache
def _keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: an optimisation step frees and asks for the same hundreds of megabytes
    each time, and fresh pages are slow. Elsewhere nothing happens."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**30)
    mallopt(m_top_pad, 2**26)
