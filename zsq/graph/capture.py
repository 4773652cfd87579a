"""From a network to its graph: torch.export with any number of images, lifted to named layers.

The lifted graph calls layers, normalisations and PReLU as modules under the names that they have in the
user's network, and everything else as functional ATen operations. What depends on no image is computed once.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from zsq.core.errors import UntraceableError
from zsq.core.runtime import one_thread
from zsq.core.userline import user_line
from zsq.graph.norms import equal_batch_norms, with_batch_norms

# torch.export takes a while to import, and many commands capture nothing.
if TYPE_CHECKING:
    from torch.export import ExportedProgram

_CAPTURED = "captured"
# Network -> the state of its tensors when it was captured, and its graph, or why there is none.
_Known = tuple[Any, fx.GraphModule | str]
_graphs: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def is_captured(network: nn.Module) -> bool:
    """Whether it is a graph that `capture` made."""
    return isinstance(network, fx.GraphModule) and bool(network.meta.get(_CAPTURED))


def capture(network: nn.Module, example: Tensor | None = None) -> fx.GraphModule:
    """The network's graph in eval mode over copies of its tensors; `network` itself is not touched.

    It is captured once per process: a second call copies what the first one found. Of a graph that was
    captured before, a copy.

    Args:
        example: what the network takes, two images or more; not needed for a captured graph.

    Raises:
        UntraceableError: control flow that depends on data, or two layers over one weight.
    """
    if is_captured(network):
        return copy.deepcopy(network).eval()  # type: ignore[return-value]
    assert example is not None, "a network that is not captured needs an example"
    state = (tuple(example.shape[1:]), *((id(t), t._version, t.device) for t in _tensors(network)))
    with one_thread:
        known = _graphs.get(network)
        if known is None or known[0] != state:
            known = (state, _captured_or_refused(network, example))
            _graphs[network] = known
    if isinstance(known[1], str):
        raise UntraceableError(known[1])
    return copy.deepcopy(known[1])


def _captured_or_refused(network: nn.Module, example: Tensor) -> fx.GraphModule | str:
    try:
        return _captured(network, example)
    except UntraceableError as error:
        return str(error)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


@torch.no_grad()
def _captured(network: nn.Module, example: Tensor) -> fx.GraphModule:
    from zsq.graph.lift import Lifting

    modes = [(module, module.training) for module in network.modules()]
    like = next(iter(_tensors(network)), example)
    example = example.to(like.device)
    if equal_batch_norms(network):
        network = with_batch_norms(network)
    network.eval()
    try:
        lifting = Lifting(_exported(network, example), network)
        graph, parts = lifting.run()
    finally:
        for module, training in modes:
            module.training = training
    module = fx.GraphModule(parts, graph, type(network).__name__).eval()
    module.meta[_CAPTURED] = True
    if lifting.computed:
        count, first = len(lifting.computed), lifting.computed[0]
        warnings.warn(
            f"{count} weights of {type(network).__name__} are computed from others ('{first}'): "
            "they are plain weights now",
            stacklevel=4,
        )
    return module


def _exported(network: nn.Module, example: Tensor) -> ExportedProgram:
    # A network may be any Python, and so may what it raises.
    try:
        return _export(network, example, strict=False)
    except Exception as error:
        refusal = _refusal(error)
        if not _is_for_one_length(error):
            raise refusal from None
    # Running Python's code fixes what len(images) gives; reading it does not.
    try:
        return _export(network, example, strict=True)
    except Exception:
        raise refusal from None


def _export(network: nn.Module, example: Tensor, strict: bool) -> ExportedProgram:
    from torch.export import Dim, ShapesCollection, export

    from zsq.graph.program import overwrites_shared

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    shapes = ShapesCollection()
    shapes[example] = {0: Dim.DYNAMIC}
    try:
        # Of a network that it cannot take, torch.export prints all that it has.
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
            program = export(
                network, (example,), dynamic_shapes=shapes.dynamic_shapes(network, (example,)), strict=strict
            )
            return program.run_decompositions({}) if overwrites_shared(program) else program
    finally:
        logging.disable(logged)
        torch.backends.mha.set_fastpath_enabled(fast)


def _is_for_one_length(error: Exception) -> bool:
    return "specialized it to be a constant" in str(error)


def _refusal(error: Exception) -> UntraceableError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if _is_for_one_length(error):
        reason = "its code holds for one number of images alone"
    return UntraceableError(
        f"the network cannot be captured{user_line(error)}: {reason.strip()[:300]}",
        "a graph without control flow on data, for any number of images",
    )
