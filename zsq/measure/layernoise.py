"""Which layer of a student hurts: the noise that each quantized layer alone brings in, as signal-to-noise
ratios against the float network. No label is read."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from zsq.contract import FittedStudent, StepLog, Teacher
from zsq.core.progress import Reporter, duration, reporter_or_silent
from zsq.core.runtime import Runtime
from zsq.core.wording import quantity
from zsq.engine.executed import images_at_once
from zsq.fitting.calibration import norm_batches
from zsq.measure.twin import QuantizedLayer, Twin
from zsq.placement.sites import row_name
from zsq.quantizers.grids import Quantizer
from zsq.tasks.nesting import plain
from zsq.tasks.sqnr import SignalToNoise
from zsq.widths import Kind

BATCH = 16
# Forward passes of an image through the network that the look at every layer takes: float, quantized, and
# each layer alone.
WALK_PASSES = 3
# The parts of a layer that are quantized alone: weights, activations.
PARTS: dict[str, tuple[bool, bool]] = {
    "weights": (True, False),
    "activations": (False, True),
    "both": (True, True),
}
BOTH = "both"
# Beyond every grid, and far from overflow when it is divided by a step.
FAR = 1e20


@dataclass(frozen=True)
class TensorRange:
    """A quantized tensor: the values of the float network, and the ends of its grid (of weights per channel
    the lowest and the highest). `clipped` is the share of the values that lie outside of their ends."""

    name: str
    kind: Kind
    bits: int
    low: float
    high: float
    grid_low: float
    grid_high: float
    clipped: float


@dataclass(frozen=True)
class LayerNoise:
    """Signal-to-noise ratios of one layer in dB: lower is worse.

    `weights`, `activations` and `both` are of the network's output with nothing but these of the layer
    quantized; empty where the layer has none of them or was not measured. `own` is of the layer's output with
    it alone quantized, `up_to` of the same with the network before it quantized too.
    """

    layer: str
    own: float
    up_to: float
    weights: float | None = None
    activations: float | None = None
    both: float | None = None
    tensors: tuple[TensorRange, ...] = ()


@dataclass(frozen=True)
class StudentNoise:
    """All layers of a student, worst first; those that were not measured at the network's output stand last.

    `sqnr` is that of the network's output with everything quantized, of several outputs the lowest.
    """

    student: str
    num_images: int
    sqnr: float
    layers: tuple[LayerNoise, ...]


@dataclass
class _Seen:
    """What came to a quantizer so far."""

    low: float = math.inf
    high: float = -math.inf
    grid_low: float = math.inf
    grid_high: float = -math.inf
    outside: int = 0
    count: int = 0

    def add(self, values: Tensor, quantizer: nn.Module) -> None:
        least, most = (quantizer(torch.full_like(values, far)) for far in (-FAR, FAR))
        self.low, self.high = min(self.low, values.min().item()), max(self.high, values.max().item())
        self.grid_low = min(self.grid_low, least.min().item())
        self.grid_high = max(self.grid_high, most.max().item())
        self.outside += int(((values < least) | (values > most)).sum())
        self.count += values.numel()

    def range_of(self, name: str, kind: Kind, widths: Mapping[str, int]) -> TensorRange:
        grid = self.grid_low, self.grid_high
        return TensorRange(name, kind, widths[name], self.low, self.high, *grid, self.outside / self.count)


@dataclass(frozen=True)
class _Pair:
    """A value of the float network and of the student."""

    floats: Any
    own: Any


def layer_noise(
    fitted: FittedStudent,
    teacher: Teacher,
    pixels_NCHW: Tensor,
    runtime: Runtime,
    *,
    layers: int | None = None,
    parts: Sequence[str] = tuple(PARTS),
    reporter: Reporter | None = None,
) -> StudentNoise:
    """Every quantized layer of a student on unlabelled images.

    Args:
        teacher: the one that the student was fitted to, on the runtime's device.
        pixels_NCHW: uint8.
        layers: measure at the network's output only so many layers, those of the lowest `own`.
        parts: of `PARTS`.

    Raises:
        MismatchError: images or a teacher that are not the student's, or a student whose layers do not stand
            for the teacher's, see `zsq.measure.twin`.
    """
    fitted.spec.check_pixels(pixels_NCHW)
    at_once = images_at_once(teacher.network, teacher.spec, BATCH)
    batches = list(norm_batches(fitted.spec, pixels_NCHW, runtime.device, at_once))
    told = reporter_or_silent(reporter)
    with runtime.in_force(exact=True), torch.no_grad():
        twin = Twin(fitted, teacher, runtime.device)
        walk, start = _Walk(twin), time.monotonic()
        for norm in batches:
            walk.see(norm)
        per_pass = (time.monotonic() - start) / (WALK_PASSES * len(pixels_NCHW))
        chosen = sorted(twin.layers, key=lambda layer: walk.own(layer))[:layers]
        tries = [(layer, part) for layer in chosen for part in parts if part == BOTH or layer.has_both]
        passes = len(pixels_NCHW) * (len(tries) + 1)
        told.say(
            f"{len(chosen)} of {quantity(len(twin.layers), 'quantized layer')} alone on "
            f"{quantity(len(pixels_NCHW), 'image')}: {passes:,} forward passes, "
            f"about {duration(passes * per_pass)}"
        )
        with told.job("layers", passes) as log:
            noise = _at_the_output(twin, tries, batches, log)
    return _result(fitted, len(pixels_NCHW), walk, twin.layers, noise)


def _at_the_output(
    twin: Twin, tries: Sequence[tuple[QuantizedLayer, str]], batches: Sequence[Tensor], log: StepLog
) -> dict[tuple[str, str], float]:
    """(layer, part) -> dB of the network's output."""
    meters = {(layer.name, part): SignalToNoise() for layer, part in tries}
    for norm in batches:
        floats = plain(twin.network(norm))
        log.advance(len(norm))
        for layer, part in tries:
            weights, activations = PARTS[part]
            with twin.quantized(layer, weights=weights, activations=activations):
                meters[layer.name, part].add(plain(twin.network(norm)), floats)
            log.advance(len(norm))
    return {key: meter.metrics()["sqnr"] for key, meter in meters.items()}


def _result(
    fitted: FittedStudent,
    num_images: int,
    walk: _Walk,
    layers: Sequence[QuantizedLayer],
    noise: Mapping[tuple[str, str], float],
) -> StudentNoise:
    widths = {row.name: row.bits for row in fitted.tensors}
    found = []
    for layer in layers:
        both = noise.get((layer.name, BOTH))
        # What has quantizers of one kind was measured once.
        weights, activations = (noise.get((layer.name, part)) for part in ("weights", "activations"))
        if not layer.has_both:
            weights, activations = (both if layer.path else None), (both if layer.inputs else None)
        ratios = walk.own(layer), walk.up_to(layer), weights, activations, both
        found.append(LayerNoise(layer.name, *ratios, walk.ranges(layer, widths)))
    found.sort(key=lambda row: (row.both is None, row.own if row.both is None else row.both))
    label = f"{fitted.student} {fitted.bits}"
    return StudentNoise(label, num_images, walk.whole.metrics()["sqnr"], tuple(found))


class _Walk(fx.Interpreter):
    """Runs the student and its float twin node by node side by side, and each layer alone between them."""

    def __init__(self, twin: Twin) -> None:
        super().__init__(twin.student)
        self.floats = fx.Interpreter(twin.network)
        self.twin = twin
        self.whole = SignalToNoise()
        self._layer_of = {node: layer.name for layer in twin.layers for node in layer.nodes}
        self._own: dict[str, SignalToNoise] = {layer.name: SignalToNoise() for layer in twin.layers}
        self._up_to: dict[str, SignalToNoise] = {layer.name: SignalToNoise() for layer in twin.layers}
        self._seen: dict[str, _Seen] = {}

    def see(self, norm: Tensor) -> None:
        """Take a batch."""
        pair = self.run(norm)
        self.whole.add(plain(pair.own), plain(pair.floats))

    def run_node(self, n: fx.Node) -> Any:
        """A pair of values for every node."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        own = getattr(self, n.op)(n.target, *_side((args, kwargs), "own"))
        if n.op == "placeholder":
            return _Pair(own, own)
        sides = _side((args, kwargs), "floats")
        pair = _Pair(getattr(self.floats, n.op)(n.target, *sides), own)
        if n.op == "call_module" and isinstance(module := self.fetch_attr(str(n.target)), Quantizer):
            self._seen.setdefault(str(n.target), _Seen()).add(pair.floats, module)
        if n.name in self._layer_of:
            self._compare(n, pair)
        return pair

    def _compare(self, n: fx.Node, pair: _Pair) -> None:
        name = self._layer_of[n.name]

        def quantized(other: fx.Node) -> Any:
            value = self.env[other].floats
            module = self.fetch_attr(str(other.target)) if other.op == "call_module" else None
            return module(value) if isinstance(module, Quantizer) else value

        args, kwargs = (fx.map_arg(part, quantized) for part in (n.args, n.kwargs))
        alone = getattr(self, n.op)(n.target, args, kwargs)
        self._own[name].add({n.name: alone}, {n.name: pair.floats})
        self._up_to[name].add({n.name: pair.own}, {n.name: pair.floats})

    def own(self, layer: QuantizedLayer) -> float:
        """In dB; of a layer that is called several times the lowest."""
        return self._own[layer.name].metrics()["sqnr"]

    def up_to(self, layer: QuantizedLayer) -> float:
        """Likewise."""
        return self._up_to[layer.name].metrics()["sqnr"]

    def ranges(self, layer: QuantizedLayer, widths: Mapping[str, int]) -> tuple[TensorRange, ...]:
        """Of its weight and its inputs; `widths` are the bits of each tensor."""
        found = []
        if layer.path is not None:
            quantizer = self.fetch_attr(layer.path).weight_quantizer
            weight = self.twin.network.get_parameter(f"{layer.path}.weight")
            seen = _Seen()
            seen.add(weight, quantizer)
            found.append(seen.range_of(f"{layer.path}.weight", "weight", widths))
        found += [self._seen[path].range_of(row_name(path), "activation", widths) for path in layer.inputs]
        return tuple(found)


def _side(values: Any, side: str) -> Any:
    """`values` with one side of every pair."""
    return fx.node.map_aggregate(values, lambda v: getattr(v, side) if isinstance(v, _Pair) else v)
