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


def weight_quantizer(
    weight: Tensor,
    bits: int,
    search: bool,
    exponent: float = LP_EXPONENT,
    per_channel: bool = True,
    each_end: bool = False,
) -> FakeQuantizer:
    """Affine grid per output channel, or one: of the least Lp error where `search`, else min-max.

    `each_end`: the search clips each end by a ratio of its own too.
    """
    rows_CM = weight.detach().flatten(1) if per_channel else weight.detach().flatten()[None]
    if search:
        step, zero = lp_affine(rows_CM, bits, p=exponent, each_end=each_end)
    else:
        step, zero = affine_grid(rows_CM.amin(dim=1), rows_CM.amax(dim=1), bits)
    return weight_on(step, zero, bits, weight.dim())


def symmetric_weight(
    weight: Tensor, bits: int, search: bool, exponent: float = LP_EXPONENT, per_channel: bool = True
) -> FakeQuantizer:
    """As `weight_quantizer`, on the levels -(2^(b-1) - 1)..2^(b-1) - 1 without a zero point."""
    rows_CM = weight.detach().flatten(1) if per_channel else weight.detach().flatten()[None]
    most = 2 ** (bits - 1) - 1
    step = (
        lp_symmetric(rows_CM, -most, most, p=exponent) if search else rows_CM.abs().amax(dim=1) / most
    ).view(-1, *[1] * (weight.dim() - 1))
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
