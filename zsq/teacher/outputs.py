"""One front for networks of any signature and any outputs: images in float32 go in, what counts comes out.

A loaded network gets a subclass of its own class, so that its names, its tensors and its copies stay as they
are.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zsq.core.errors import MismatchError, UsageError
from zsq.core.imagespec import ImageSpec
from zsq.core.layout import channels_last, maps_channels_last
from zsq.core.seeding import torch_generator
from zsq.core.userline import user_line
from zsq.tasks import TASKS, Task
from zsq.tasks.nesting import Outputs, named_tensors, pick, plain, shapes

HALVES = (torch.float16, torch.bfloat16)
# Of rows that should sum to 1, in float32 over thousands of classes.
SUM_TOLERANCE = 1e-3
# Of an output's largest value: kernels for one and for two images add in another order.
ROW_TOLERANCE = 1e-3

_FITTING = "an [image] table that fits the network"


class InFloat32(TorchFunctionMode):
    """Casts to 16 bits, which a forward may make itself, become casts to float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """`func` with float32 wherever it names a type of 16 bits."""
        if func in (Tensor.half, Tensor.bfloat16):
            return args[0].float()
        named = {key: _whole(value) for key, value in (kwargs or {}).items()}
        return func(*map(_whole, args), **named)


class ByReshape(TorchFunctionMode):
    """`view` copies, as `reshape` does, where the layout is another than the forward was written for."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """`func`, but for `view` with a shape."""
        named = dict(kwargs or {})
        of_dtype = any(isinstance(value, torch.dtype) for value in (*args, *named.values()))
        if func is Tensor.view and not of_dtype:
            return args[0].reshape(*args[1:], *named.values())
        return func(*args, **named)


def _whole(value: Any) -> Any:
    return torch.float32 if isinstance(value, torch.dtype) and value in HALVES else value


def made_float(network: nn.Module, what: str) -> bool:
    """Turn weights of 16 or 64 bits into float32, in place; whether there were any, which a warning says."""
    tensors = [*network.parameters(), *network.buffers()]
    found = sorted(
        {str(t.dtype).removeprefix("torch.") for t in tensors if t.dtype in (*HALVES, torch.float64)}
    )
    if found:
        network.float()
        warnings.warn(f"{what} is {' and '.join(found)}: it runs in float32 here", stacklevel=2)
    return bool(found)


def settle(
    network: nn.Module,
    spec: ImageSpec,
    task: Task,
    what: str,
    *,
    num_outputs: int | None = None,
    output: str | None = None,
    in_float: bool = False,
) -> Outputs:
    """Make `network` take images alone and return what `task` wants; its outputs for one black image.

    Args:
        what: how messages call the network.
        num_outputs: channels that the output must have, None for any.
        output: dotted path of keys, attributes and indices to the output that counts.
        in_float: 16-bit casts inside its forward become float32, as `made_float` says.

    A warning says so where its answer for an image follows chance, earlier calls or the images beside it.

    Raises:
        UsageError: it takes several inputs without a default.
        MismatchError: it fails on one or on two such images, or returns something else.
    """
    network.eval()
    keyword, several = _input_of(network, what)
    own = type(network)
    modes: tuple[type[TorchFunctionMode], ...] = (InFloat32,) if in_float else ()
    if modes or several:
        network.__class__ = _front(own, keyword, modes, None)
    found = _probe(network, spec, what)
    outputs = _picked(found, output, task, num_outputs, what)
    by_reshape = not _takes_channels_last(network, spec)
    modes = (*modes, ByReshape) if by_reshape else modes
    if by_reshape or not isinstance(found, Tensor):
        network.__class__ = _front(own, keyword, modes, output)
    _check_logits(network, spec, task, outputs, what)
    _check_each_alone(network, spec, outputs, what)
    return outputs


def _front(
    own: type[nn.Module],
    keyword: str | None,
    modes: tuple[type[TorchFunctionMode], ...],
    output: str | None,
) -> type[nn.Module]:
    """A subclass of `own` with a forward of one input, under `modes`."""

    def forward(self: nn.Module, images: Tensor) -> Outputs:
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode())
            found = own.forward(self, **{keyword: images}) if keyword else own.forward(self, images)
        return plain(found if output is None else pick(found, output))

    return type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})


def _input_of(network: nn.Module, what: str) -> tuple[str | None, bool]:
    """The keyword that its images need, None where they go first; whether there are other inputs."""
    named = [
        parameter
        for parameter in inspect.signature(network.forward).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    needed = [parameter for parameter in named if parameter.default is parameter.empty]
    if len(needed) > 1:
        raise UsageError(
            f"{what} needs {len(needed)} inputs: {', '.join(p.name for p in needed)}",
            "one input without a default, the images",
            "write a module around it that gives it the others",
        )
    by_name = next((p.name for p in needed or named[:1] if p.kind is p.KEYWORD_ONLY), None)
    return by_name, len(named) > 1 or by_name is not None


def _probe(network: nn.Module, spec: ImageSpec, what: str) -> Any:
    black = torch.zeros(1, *spec.shape, dtype=torch.uint8)
    shape = "x".join(str(length) for length in spec.shape)
    return _outputs_of(network, spec, black, f"{what} failed on a {shape} image", _FITTING)


def _takes_channels_last(network: nn.Module, spec: ImageSpec) -> bool:
    """Whether its forward can view what it computes in that layout, as methods and students do."""
    norm = spec.pixels_to_norm(torch.zeros(2, *spec.shape, dtype=torch.uint8))
    tensors = [*network.parameters(), *network.buffers()]
    before = [tensor.data for tensor in tensors]
    try:
        with torch.no_grad():
            channels_last(network)(maps_channels_last(norm))
    # The forward pass is the user's own code and may raise anything; what has another cause is said later.
    except Exception as error:
        return "view size is not compatible" not in str(error)
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data
    return True


def _outputs_of(network: nn.Module, spec: ImageSpec, pixels: Tensor, failed: str, expected: str) -> Any:
    try:
        with torch.no_grad():
            return network(spec.pixels_to_norm(pixels))
    # The forward pass is the user's own code and may raise anything.
    except Exception as error:
        found = f"{failed} with {type(error).__name__}{user_line(error)}: {error}"
        raise MismatchError(found, expected) from error


def _check_each_alone(network: nn.Module, spec: ImageSpec, alone: Outputs, what: str) -> None:
    """Say so where black beside noise is not what it is `alone`, of a batch of one."""
    pixels = torch.stack([torch.zeros(spec.shape, dtype=torch.uint8), _noise(spec)])
    expected = "a network for any number of images"
    beside = plain(_outputs_of(network, spec, pixels, f"{what} takes one image but failed on two", expected))
    if _same_first(alone, beside):
        return
    again = plain(_outputs_of(network, spec, pixels[:1], f"{what} failed when called again", expected))
    why = (
        "of an image depend on the images beside it: batch norm in training mode, or a sum over the batch"
        if _same_first(alone, again)
        else "of one image are others in each call: dropout in eval mode, or a state that it changes"
    )
    warnings.warn(f"{what}: the outputs {why}; fits and scores will not repeat", stacklevel=3)


def _same_first(alone: Outputs, others: Outputs) -> bool:
    """Whether the first rows of `others` are those of `alone`, in every tensor that has a row per image."""
    found = dict(named_tensors(others))
    for name, tensor in named_tensors(alone):
        other = found.get(name, tensor)
        if tensor.ndim < 2 or len(tensor) != 1 or other.shape[1:] != tensor.shape[1:]:
            continue
        off, most = (other[:1].double() - tensor.double()).abs().max(), tensor.double().abs().max()
        if bool(off > ROW_TOLERANCE * most):
            return False
    return True


def _picked(found: Any, output: str | None, task: Task, num_outputs: int | None, what: str) -> Outputs:
    try:
        chosen = plain(found if output is None else pick(found, output))
    except KeyError:
        said = f"{what} has no output '{output}': it returns {shapes(found)} for one image"
        raise MismatchError(said, _wanted(task, num_outputs), _advice(found, task, num_outputs)) from None
    if not _fits(chosen, task, num_outputs):
        said = f"{what} returns {shapes(found)} for one image" + (f"; '{output}' is picked" if output else "")
        raise MismatchError(said, _wanted(task, num_outputs), _advice(found, task, num_outputs))
    return chosen


def _fits(outputs: Outputs, task: Task, num_outputs: int | None) -> bool:
    return task.suits(outputs) and (num_outputs is None or tuple(outputs.shape[:2]) == (1, num_outputs))


def _wanted(task: Task, num_outputs: int | None) -> str:
    return task.wants if num_outputs is None else f"{task.wants} with {task.size_key} = {num_outputs}"


def _advice(found: Any, task: Task, num_outputs: int | None) -> str:
    """Which `output`, size or task would fit what the network returns."""
    tensors = dict(named_tensors(plain(found)))
    if isinstance(found, Tensor) and found.ndim == 1:
        return "keep the axis of the images: flatten(1), or squeeze with an axis, in place of squeeze()"
    fitting = [name for name, tensor in tensors.items() if name and _fits(tensor, task, num_outputs)]
    logits = [name for name in fitting if _softmax_of(tensors[name]) is None]
    if fitting:
        fitting = logits if task.size_key == "num_classes" and logits else fitting
        return "the card's " + " or ".join(f'output = "{name}"' for name in fitting) + " would fit"
    sizes = {name: tensor.shape[1] for name, tensor in tensors.items() if task.suits(tensor)}
    # One number for each image is no class among several.
    one = task.size_key == "num_classes" and set(sizes.values()) == {1}
    if sizes and task.size_key is not None and not one:
        picks = [
            (f'output = "{name}" and ' if name else "") + f"{task.size_key} = {sizes[name]}" for name in sizes
        ]
        return "the card's " + " or ".join(picks) + " would fit"
    others = [name for name, kind in TASKS.items() if name != task.name and kind().suits(plain(found))]
    return "the card's task may be " + " or ".join(others) if others else ""


def _check_logits(network: nn.Module, spec: ImageSpec, task: Task, outputs: Outputs, what: str) -> None:
    """Say so where logits are probabilities, or their logarithms."""
    if task.size_key != "num_classes":
        return
    kind = _softmax_of(outputs)
    if kind is None:
        return
    with torch.no_grad():
        if _softmax_of(network(spec.pixels_to_norm(_noise(spec)[None]))) == kind:
            warnings.warn(f"{what} ends in {kind}: logits are wanted, the values before it", stacklevel=3)


def _noise(spec: ImageSpec) -> Tensor:
    noise = torch.randint(256, (1, *spec.shape), generator=torch_generator(0, 0, "noise for a softmax"))
    return noise[0].to(torch.uint8)


def _softmax_of(outputs: Tensor) -> str | None:
    for kind, shares in (("softmax", outputs.double()), ("log_softmax", outputs.double().exp())):
        if bool((shares >= 0).all() and ((shares.sum(1) - 1).abs() < SUM_TOLERANCE).all()):
            return kind
    return None
