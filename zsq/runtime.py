"""Where and how tensors are computed: device, threads, precision, compilation. Static rules only, so that
the same options give the same bytes: nothing here is measured at run time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from zsq.errors import OptionError

Precision = Literal["fp32", "bf16"]

# Forward GFLOPs of a whole job above which `--compile auto` compiles: 60 s of cold compilation against the
# 40 % that a compiled fp32 step saves with AVX2, at 45 GFLOP/s on two cores. With AVX-512 the eager step of
# ResNet-20 is as fast as the compiled one, so nothing is compiled there.
COMPILE_BREAK_EVEN_GFLOPS = 2300.0


@dataclass(frozen=True)
class Runtime:
    """Resolved runtime of one job; recorded in manifests and compared by `--resume`."""

    device: str = "cpu"
    precision: Precision = "fp32"
    compile: bool = False
    threads: int | None = None

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

        Args:
            total_gflops: forward cost of the whole job, from which `compile="auto"` decides.

        Raises:
            OptionError: a value outside its choices, or a device that is not there.
        """
        for option, value, choices in (
            ("--precision", precision, ("auto", "fp32", "bf16")),
            ("--compile", compile, ("auto", "on", "off")),
        ):
            if value not in choices:
                raise OptionError(f"{option} {value}", f"one of {', '.join(choices)}")
        if threads is not None and threads < 1:
            raise OptionError(f"--threads {threads}", "at least 1")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            kind = torch.device(device).type
        except RuntimeError:
            raise OptionError(f"--device {device}", "cpu, cuda or cuda:N") from None
        if kind not in ("cpu", "cuda"):
            raise OptionError(f"--device {device}", "cpu, cuda or cuda:N")
        if kind == "cuda" and not torch.cuda.is_available():
            raise OptionError(f"--device {device}", "a CUDA device that torch can use", "use --device cpu")
        pays = kind == "cuda" or torch.backends.cpu.get_cpu_capability() == "AVX2"
        compiled = compile == "on" or (
            compile == "auto" and pays and total_gflops > COMPILE_BREAK_EVEN_GFLOPS
        )
        return cls(device, "bf16" if precision == "bf16" else "fp32", compiled, threads)

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 convolutions where asked for; statistics and losses stay fp32 in any case."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` as one compiled graph where this runtime compiles, else unchanged."""
        return torch.compile(function, dynamic=False) if self.compile else function

    @contextmanager
    def threads_set(self) -> Iterator[None]:
        """Run with the chosen number of intra-op threads and restore the old number."""
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def record(self) -> dict[str, Any]:
        """As stored in `run.json` and manifests; `threads` is the number in force."""
        return asdict(self) | {"threads": self.threads or torch.get_num_threads()}
