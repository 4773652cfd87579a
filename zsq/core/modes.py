"""The modes of torch that zsq computes in, whatever a caller has switched on around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def usual_modes() -> Iterator[None]:
    """Gradients on, no inference mode, no autocast, float32 and the CPU as defaults; then what was before.

    Also a decorator. A notebook may have called `torch.set_grad_enabled(False)` in its first line.
    """
    import torch  # not before the first call: the command line starts without it

    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Every module of `network` in eval mode; then the modes that were before."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
