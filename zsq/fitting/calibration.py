"""What students do before any training: check the teacher, see what each tensor looks like on the
images, and set affine grids from that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, fx, nn

from zsq.contract import Teacher
from zsq.core.errors import MismatchError
from zsq.core.imagespec import ImageSpec
from zsq.core.layout import maps_channels_last
from zsq.placement.sites import Placement, Site
from zsq.placement.subgraphs import up_to
from zsq.quantizers.grids import FakeQuantizer, affine_grid, integer_range
from zsq.quantizers.observers import Histogram, Observer
from zsq.quantizers.ranges import LP_EXPONENT, lp_affine, lp_symmetric

BATCH = 64
# What the range of a channel is taken from, at most: 250 MB of 1024 channels.
MOST_ROWS = 2**16


def norm_batches(
    spec: ImageSpec, pixels_NCHW: Tensor, device: str | torch.device, batch: int = BATCH
) -> Iterator[Tensor]:
    """What a network takes, channels_last on `device`, `batch` images at a time."""
    for pixels in pixels_NCHW.split(batch):
        yield maps_channels_last(spec.pixels_to_norm(pixels.to(device)))


def check_classifier(teacher: Teacher) -> None:
    """Refuse a teacher without classes.

    Raises:
        MismatchError: it has none.
    """
    if not teacher.task.has_classes:
        found = f"teacher {teacher.name} has task '{teacher.task.name}', which has no classes"
        raise MismatchError(found, "a classifier", "use student ptq")


def minmax_weight(weight: Tensor, bits: int, per_channel: bool = True) -> FakeQuantizer:
    """Affine grid per output channel, or one, between the extremes."""
    rows_CM = _rows(weight, per_channel)
    return weight_on(*affine_grid(rows_CM.amin(dim=1), rows_CM.amax(dim=1), bits), bits, weight.dim())


def searched_weight(
    weight: Tensor,
    bits: int,
    exponent: float = LP_EXPONENT,
    per_channel: bool = True,
    each_end: bool = False,
) -> FakeQuantizer:
    """Affine grid per output channel, or one, with the least Lp error; see `lp_affine` for `each_end`."""
    grid = lp_affine(_rows(weight, per_channel), bits, p=exponent, each_end=each_end)
    return weight_on(*grid, bits, weight.dim())


def symmetric_minmax_weight(weight: Tensor, bits: int, per_channel: bool = True) -> FakeQuantizer:
    """As `minmax_weight`, on the levels -(2^(b-1) - 1)..2^(b-1) - 1 without a zero point."""
    most = 2 ** (bits - 1) - 1
    return _symmetric_on(_rows(weight, per_channel).abs().amax(dim=1) / most, most, weight.dim())


def symmetric_searched_weight(
    weight: Tensor, bits: int, exponent: float = LP_EXPONENT, per_channel: bool = True
) -> FakeQuantizer:
    """As `searched_weight`, on the levels of `symmetric_minmax_weight`."""
    most = 2 ** (bits - 1) - 1
    step_C = lp_symmetric(_rows(weight, per_channel), -most, most, p=exponent)
    return _symmetric_on(step_C, most, weight.dim())


def _rows(weight: Tensor, per_channel: bool) -> Tensor:
    """(C, M): a row for each grid."""
    return weight.detach().flatten(1) if per_channel else weight.detach().flatten()[None]


def _symmetric_on(step_C: Tensor, most: int, dim: int) -> FakeQuantizer:
    step = step_C.view(-1, *[1] * (dim - 1))
    return FakeQuantizer(step, torch.zeros_like(step), -most, most, "weight")


def weight_on(step_C: Tensor, zero_C: Tensor, bits: int, dim: int) -> FakeQuantizer:
    """Affine grid of a weight of `dim` axes, output channels first."""
    shape = (-1, *[1] * (dim - 1))
    return FakeQuantizer(step_C.view(shape), zero_C.view(shape), *integer_range(bits, False), "weight")


def searched_activation(
    histogram: Histogram, bits: int, exponent: float = LP_EXPONENT, learned: bool = False
) -> FakeQuantizer:
    """Affine grid per tensor with the least Lp error over the histogram."""
    values, counts = histogram.occupied()
    step, zero = lp_affine(values[None], bits, counts, exponent, each_end=True)
    return activation_on(step.squeeze(0), zero.squeeze(0), bits, learned)


def activation_over(low: float, high: float, bits: int) -> FakeQuantizer:
    """Affine grid per tensor over [low, high], stretched to hold 0."""
    return activation_on(*affine_grid(torch.tensor(low), torch.tensor(high), bits), bits)


def activation_on(step: Tensor, zero: Tensor, bits: int, learned: bool = False) -> FakeQuantizer:
    """Affine grid per tensor."""
    grid = integer_range(bits, signed=False)
    return FakeQuantizer(step.float(), zero.float(), *grid, "activation", learned)


@torch.no_grad()
def rows_of(network: fx.GraphModule, tensor: str, batches: Iterable[Tensor]) -> Tensor:
    """(M, C) float32 vectors along the last axis of the node `tensor`, of as many of the first images as have
    `MOST_ROWS` together."""
    part, rows, found = up_to(network, [tensor]), 0, []
    for norm in batches:
        (value,) = part(norm)
        found.append(value.float().flatten(0, -2))
        rows += len(found[-1])
        if rows >= MOST_ROWS:
            break
    return torch.cat(found)[:MOST_ROWS]


@torch.no_grad()
def observe(
    placement: Placement, spec: ImageSpec, pixels_NCHW: Tensor, device: str, batch: int = BATCH
) -> dict[Site, Histogram]:
    """Histogram of each activation site's tensor, with everything still float; the sites are left empty.

    In fp32 whatever the runtime's precision: ranges are statistics.
    """
    observers = {site: Observer(site.name) for site in placement.of_kind("activation")}
    if not observers:
        return {}
    for site, observer in observers.items():
        placement.put(site, observer)
    for norm in norm_batches(spec, pixels_NCHW, device, batch):
        placement.network(norm)
    for site in observers:
        placement.put(site, nn.Identity())
    return {site: observer.histogram() for site, observer in observers.items()}
