"""Where activations are tapped and how their statistics are compared with the stored ones.

Every BN loss of the literature is one `Alignment`: scope x moment x distance x reduction x weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from zsq.contract import Teacher
from zsq.core.errors import NoBatchNormError
from zsq.engine.chunked import InChunks, columns
from zsq.engine.executed import FeatureTap, blank, executed
from zsq.engine.frozen import (
    PLAIN_BATCH_NORMS,
    Materialised,
    MaterialisedGradients,
    freeze_convolutions,
    tap_batch_norm,
)
from zsq.engine.norms import batch_norms, private_copy, stores_any
from zsq.engine.outputs import PerImage, in_float32, per_image
from zsq.engine.outputs import joined as joined_outputs

EPSILON = 1e-6  # under the square root of a std, for a finite gradient at zero variance

Scope = Literal["sample", "batch", "set"]


@dataclass(frozen=True)
class LayerSums:
    """Sums over positions of one layer's input, shifted by the target mean against cancellation; float32.

    s1_NC = sum_p (a - mean_C), s2_NC = sum_p (a - mean_C)^2 over `num_positions` positions. `mean_C`, `var_C`
    are the targets: what the layer's input should look like.

    Of a layer that ran `num_calls` times in a pass, such as one BN for all levels of a pyramid, the channels
    of the calls stand side by side, (N, num_calls C), scaled to the calls' mean number of positions.
    """

    s1_NC: Tensor
    s2_NC: Tensor
    num_positions: float
    mean_C: Tensor
    var_C: Tensor
    num_calls: int = 1

    def over_calls(self, values: Tensor) -> Tensor:
        """A statistic (..., num_calls C) -> its mean over the calls (..., C): each counts alike, as it did in
        the running statistics, whatever its number of positions."""
        return values if self.num_calls == 1 else values.unflatten(-1, (self.num_calls, -1)).mean(-2)


@dataclass(frozen=True)
class SetSums:
    """Sums of the images outside the current batch, per layer: a constant part of whole-set statistics."""

    s1_C: Tensor
    s2_C: Tensor
    num_images: int


def layer_sums(activations: Tensor, mean_C: Tensor, var_C: Tensor) -> LayerSums:
    """In float32, of activations (N, C, ...)."""
    shifted = activations.to(mean_C.dtype).flatten(2) if activations.dim() > 2 else activations[..., None]
    shifted = shifted.to(mean_C.dtype) - mean_C[:, None]
    return LayerSums(shifted.sum(2), (shifted * shifted).sum(2), shifted.shape[2], mean_C, var_C)


def rows_of_images(sums: LayerSums, num_images: int) -> LayerSums:
    """With one row per image, where the layer saw other rows, such as tokens (images x tokens, C).

    Rows are added up where they divide by the images; else each image has an equal share of the batch's sums.
    A layer that saw no row counts as one that is on its targets.
    """
    rows = len(sums.s1_NC)
    if rows == num_images:
        return sums
    if rows == 0:
        zeros_NC = sums.s1_NC.new_zeros(num_images, len(sums.mean_C))
        return replace(sums, s1_NC=zeros_NC, s2_NC=zeros_NC + sums.var_C, num_positions=1)
    whole = rows % num_images == 0

    def shared(values: Tensor) -> Tensor:
        if whole:
            return values.unflatten(0, (num_images, -1)).sum(1)
        return values.sum(0, keepdim=True).expand(num_images, -1) / num_images

    positions = sums.num_positions * (rows // num_images if whole else rows / num_images)
    return replace(sums, s1_NC=shared(sums.s1_NC), s2_NC=shared(sums.s2_NC), num_positions=positions)


def merged(calls: Sequence[LayerSums]) -> LayerSums:
    """One layer's sums from those of its calls in a pass."""
    first = calls[0]
    if len(calls) == 1:
        return first
    each = [call.num_positions for call in calls]
    positions = each[0] if len(set(each)) == 1 else sum(each) / len(each)
    s1_NC, s2_NC = (
        torch.cat([part * (positions / count) for part, count in zip(parts, each, strict=True)], 1)
        for parts in ([call.s1_NC for call in calls], [call.s2_NC for call in calls])
    )
    return replace(first, s1_NC=s1_NC, s2_NC=s2_NC, num_positions=positions, num_calls=len(calls))


def input_sums(standard_NCHW: Tensor) -> LayerSums:
    """Statistics of the images themselves; in standard space their targets are mean 0 and variance 1."""
    zero = standard_NCHW.new_zeros(standard_NCHW.shape[1])
    return layer_sums(standard_NCHW, zero, zero + 1)


def require_batch_norm(teacher: Teacher, owner: str) -> None:
    """Nothing, where there are statistics for `owner` to match.

    Raises:
        NoBatchNormError: there are none.
    """
    if not stores_any(teacher.network, teacher.spec):
        raise _no_batch_norm(teacher, owner)


def _no_batch_norm(teacher: Teacher, owner: str) -> NoBatchNormError:
    return NoBatchNormError(
        f"teacher '{teacher.name}' has no BatchNorm layer with stored statistics",
        f"BN layers, which {owner} matches",
    )


class TappedTeacher(nn.Module):
    """A private copy of a teacher whose BN inputs are measured: the teacher itself never carries a hook."""

    def __init__(self, teacher: Teacher, owner: str = "this method") -> None:
        """Copy the network, channels_last, with every BN that stores running statistics tapped.

        `names` are those of the layers in the order of their execution.

        Raises:
            NoBatchNormError: there is none.
        """
        super().__init__()
        self.spec = teacher.spec
        require_batch_norm(teacher, owner)
        self.network = private_copy(teacher.network, teacher.spec)
        self._calls: list[tuple[str, LayerSums]] = []
        layers = batch_norms(self.network)
        freeze_convolutions(self.network)
        for name, module in self.network.named_modules():
            if module in layers:
                self._tap(name, module)
        # The order of execution need not be that of declaration.
        calls = executed(self.network, lambda: self._forward(blank(self.network, self.spec)))
        self.names = list(dict.fromkeys(call.name for call in calls if call.module in layers))
        if not self.names:
            raise _no_batch_norm(teacher, owner)
        values = sum(call.num_values for call in calls if not list(call.module.children()))
        self.in_chunks = InChunks(self._flat_forward, values)
        self.features: FeatureTap | None = None

    def tap_features(self, teacher: Teacher) -> FeatureTap:
        """Measure from now on what enters the last layer of `teacher`, of which this is a copy.

        Raises:
            MismatchError: there is none.
        """
        self.features = FeatureTap(self.network, teacher)
        # A compiled step would be compiled once for these and once for none.
        self._calls.clear()
        return self.features

    def _tap(self, name: str, layer: nn.Module) -> None:
        if type(layer) in PLAIN_BATCH_NORMS:
            tap_batch_norm(layer, partial(self._measure, name))
        else:
            layer.register_forward_pre_hook(partial(self._measure_input, name))

    def _measure(
        self, name: str, layer: nn.Module, activations: Tensor, s1_NC: Tensor, s2_NC: Tensor
    ) -> None:
        mean_C, var_C = layer.running_mean, layer.running_var
        assert isinstance(mean_C, Tensor) and isinstance(var_C, Tensor)
        positions = math.prod(activations.shape[2:])
        self._calls.append((name, LayerSums(s1_NC, s2_NC, positions, mean_C, var_C)))

    def _measure_input(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean_C, var_C = layer.running_mean, layer.running_var
        assert isinstance(mean_C, Tensor) and isinstance(var_C, Tensor)
        self._calls.append((name, layer_sums(inputs[0], mean_C, var_C)))

    def forward(self, standard_NCHW: Tensor) -> tuple[PerImage, list[LayerSums]]:
        """Standard-space images -> outputs and the sums at each executed BN, in order of execution.

        Images that do not fit into memory at once go `in_chunks`.
        """
        run = self._chunked if self.in_chunks.needed(standard_NCHW) else self._forward
        outputs, layers = run(standard_NCHW)
        return in_float32(outputs), layers

    def _forward(self, standard_NCHW: Tensor) -> tuple[PerImage, list[LayerSums]]:
        self._calls.clear()
        # In the layout of convolutions, which signals (N, C, L) do not have.
        norm_NCHW = Materialised.apply(self.spec.standard_to_norm(standard_NCHW), standard_NCHW.dim() == 4)
        returned = self.network(norm_NCHW)
        layers = _with_materialised_gradients(_of_images(self._calls, len(standard_NCHW)))
        self._calls.clear()
        return per_image(returned, len(standard_NCHW)), layers

    def _chunked(self, standard_NCHW: Tensor) -> tuple[PerImage, list[LayerSums]]:
        parts = self.in_chunks(standard_NCHW)
        if self.features:
            self.features.put(torch.cat([features for _, (features,), _ in parts]))
        sums = columns([flat_sums for *_, flat_sums in parts])
        return joined_outputs([returned for returned, *_ in parts]), [
            LayerSums(s1_NC, s2_NC, *of_layer)
            for of_layer, s1_NC, s2_NC in zip(self._layers, sums[::2], sums[1::2], strict=True)
        ]

    def _flat_forward(self, standard_NCHW: Tensor) -> tuple[PerImage, list[Tensor], list[Tensor]]:
        outputs, layers = self._forward(standard_NCHW)
        # Without the sums, which would keep the chunk's activations.
        self._layers = [(s.num_positions, s.mean_C, s.var_C, s.num_calls) for s in layers]
        return outputs, [self.features.take()] if self.features else [], _flat(layers)


def _of_images(calls: Sequence[tuple[str, LayerSums]], num_images: int) -> list[LayerSums]:
    """Each layer's sums, in the order of their first calls."""
    by_layer: dict[str, list[LayerSums]] = {}
    for name, sums in calls:
        by_layer.setdefault(name, []).append(rows_of_images(sums, num_images))
    return [merged(each) for each in by_layer.values()]


def _flat(layers: Sequence[LayerSums]) -> list[Tensor]:
    return [part for sums in layers for part in (sums.s1_NC, sums.s2_NC)]


def _with_materialised_gradients(layers: Sequence[LayerSums]) -> list[LayerSums]:
    flat = MaterialisedGradients.apply(*_flat(layers))
    return [
        replace(sums, s1_NC=s1_NC, s2_NC=s2_NC)
        for sums, s1_NC, s2_NC in zip(layers, flat[::2], flat[1::2], strict=True)
    ]


def mean_gap_and_var(
    sums: LayerSums, scope: Scope, unbiased: bool = False, others: SetSums | None = None
) -> tuple[Tensor, Tensor]:
    """(mean - target mean, variance) of one layer: (N, C) in sample scope, (C,) otherwise.

    A layer with one position per image has no variance of its own: sample scope is batch scope there.
    """
    s1, s2, count = sums.s1_NC, sums.s2_NC, sums.num_positions
    if scope != "sample" or count == 1:
        count = count * s1.shape[0]
        s1, s2 = s1.sum(0), s2.sum(0)
        if scope == "set" and others is not None:
            s1, s2 = s1 + others.s1_C, s2 + others.s2_C
            count = count + others.num_images * sums.num_positions
    gap = s1 / count
    var = (s2 / count - gap * gap).clamp_min(0)
    if unbiased and count > 1:
        var = var * (count / (count - 1))
    return sums.over_calls(gap), sums.over_calls(var)


@dataclass(frozen=True)
class Alignment:
    """One BN loss.

    moment: compares the variance or sqrt(variance + 1e-6), beside the mean.
    distance: "squared" r_c(g^2) · "norm" sqrt(sum_c g^2), un-squared · "slack" r_c(relu(|g| - d)^2).
    mean_slack_L, spread_slack_L: the d of each layer. sample_weights_NL: weight of sample n in layer l.
    """

    scope: Scope = "batch"
    moment: Literal["std", "var"] = "std"
    distance: Literal["squared", "norm", "slack"] = "squared"
    unbiased: bool = False
    over_channels: Literal["sum", "mean"] = "mean"
    over_layers: Literal["sum", "mean"] = "sum"
    layer_weights_L: Tensor | None = None
    sample_weights_NL: Tensor | None = None
    mean_slack_L: Tensor | None = None
    spread_slack_L: Tensor | None = None

    def gaps(self, sums: LayerSums, others: SetSums | None = None) -> tuple[Tensor, Tensor]:
        """Signed gaps of mean and of std or variance: (N, C) in sample scope, else (C,)."""
        gap, var = mean_gap_and_var(sums, self.scope, self.unbiased, others)
        if self.moment == "var":
            return gap, var - sums.var_C
        return gap, (var + EPSILON).sqrt() - (sums.var_C + EPSILON).sqrt()

    def layer(self, sums: LayerSums, index: int = 0, others: SetSums | None = None) -> Tensor:
        """Loss of layer `index`, a scalar: both moments, mean over samples in sample scope."""
        mean_gap, spread_gap = self.gaps(sums, others)
        loss = self._distance(mean_gap, self.mean_slack_L, index)
        loss = loss + self._distance(spread_gap, self.spread_slack_L, index)
        if loss.dim() and self.sample_weights_NL is not None:
            loss = loss * self.sample_weights_NL[:, index]
        return loss.mean()

    def _distance(self, gap: Tensor, slack_L: Tensor | None, index: int) -> Tensor:
        if self.distance == "norm":
            return (gap.square().sum(-1) + 1e-12).sqrt()
        if self.distance == "slack":
            assert slack_L is not None
            gap = (gap.abs() - slack_L[index]).relu()
        squared = gap.square()
        return squared.sum(-1) if self.over_channels == "sum" else squared.mean(-1)

    def __call__(self, layers: Sequence[LayerSums], others: Sequence[SetSums] | None = None) -> Tensor:
        """Loss over all layers, a scalar."""
        losses = torch.stack(
            [self.layer(sums, index, others[index] if others else None) for index, sums in enumerate(layers)]
        )
        if self.layer_weights_L is not None:
            losses = losses * self.layer_weights_L
        return losses.sum() if self.over_layers == "sum" else losses.mean()


def image_distances(layers: Sequence[LayerSums]) -> Tensor:
    """Each image's own BN distance (N,): mean over layers of mean_c[(m - M)^2 + (s - S)^2], biased std.

    Layers with one position per image count with their mean alone, so that no image depends on another.
    """
    per_layer = []
    for sums in layers:
        gap = sums.s1_NC / sums.num_positions
        distance = sums.over_calls(gap).square().mean(1)
        if sums.num_positions > 1:
            var = sums.over_calls((sums.s2_NC / sums.num_positions - gap.square()).clamp_min(0))
            std_gap = (var + EPSILON).sqrt() - (sums.var_C + EPSILON).sqrt()
            distance = distance + std_gap.square().mean(1)
        per_layer.append(distance)
    return torch.stack(per_layer).mean(0)


def joined(chunks: Iterable[Sequence[LayerSums]]) -> list[LayerSums]:
    """The sums of all images, from those of consecutive chunks."""
    return [
        replace(
            parts[0],
            s1_NC=torch.cat([part.s1_NC for part in parts]),
            s2_NC=torch.cat([part.s2_NC for part in parts]),
        )
        for parts in zip(*chunks, strict=True)
    ]


@torch.no_grad()
def set_sums(tapped: TappedTeacher, chunks: Iterable[Tensor]) -> list[LayerSums]:
    """Sums over all standard-space images of `chunks`, each layer as one sample: whole-set statistics.

    Memory is that of one chunk.
    """
    totals: list[LayerSums] = []
    for chunk in chunks:
        _, layers = tapped(chunk)
        whole = [
            replace(
                s,
                s1_NC=s.s1_NC.sum(0, keepdim=True),
                s2_NC=s.s2_NC.sum(0, keepdim=True),
                num_positions=s.num_positions * len(chunk),
            )
            for s in layers
        ]
        totals = [_added(a, b) for a, b in zip(totals, whole, strict=True)] if totals else whole
    return totals


def _added(a: LayerSums, b: LayerSums) -> LayerSums:
    positions = a.num_positions + b.num_positions
    return replace(a, s1_NC=a.s1_NC + b.s1_NC, s2_NC=a.s2_NC + b.s2_NC, num_positions=positions)
