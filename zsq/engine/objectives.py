"""Every loss term: a pure function of one teacher pass, named, with its paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from zsq.engine.attention import BlockTap
from zsq.engine.classes import ClassCentres
from zsq.engine.outputs import PerImage, flat
from zsq.engine.statistics import Alignment, LayerSums, SetSums, input_sums, mean_gap_and_var

ZSCORE_EPSILON = 1e-6
RELATIVE_FLOOR = 1e-3


@dataclass(frozen=True)
class TeacherPass:
    """One teacher pass: what the teacher saw (standard space), what it said, its statistics, the targets.

    `outputs`: of a network that returns one tensor, that; else all that it returned of each image.

    `others`: per layer, the sums of the set's other images, for whole-set statistics. `features_NF`: what
    enters the last layer, where it is tapped. `blocks`: the attention, where it is.
    """

    viewed_NCHW: Tensor
    outputs: PerImage
    layers: Sequence[LayerSums]
    targets_NK: Tensor | None
    others: Sequence[SetSums] | None = None
    features_NF: Tensor | None = None
    blocks: Sequence[BlockTap] = ()

    @property
    def logits_NK(self) -> Tensor:
        """The outputs of a network with classes."""
        assert isinstance(self.outputs, Tensor)
        return self.outputs

    @property
    def filled_outputs(self) -> list[Tensor]:
        """The outputs (N, ...) that hold a value of each image."""
        return [each for each in flat(self.outputs) if each.dim() > 1 and each.numel()]


def of_images(forward: TeacherPass, chosen: slice) -> TeacherPass:
    """The pass of some images of the batch alone, and the targets of the same rows."""
    given, outputs = forward.features_NF, forward.outputs
    return replace(
        forward,
        viewed_NCHW=forward.viewed_NCHW[chosen],
        outputs=outputs[chosen] if isinstance(outputs, Tensor) else tuple(each[chosen] for each in outputs),
        layers=[replace(s, s1_NC=s.s1_NC[chosen], s2_NC=s.s2_NC[chosen]) for s in forward.layers],
        targets_NK=None if forward.targets_NK is None else forward.targets_NK[chosen],
        features_NF=None if given is None else given[chosen],
        blocks=[tap.of_images(chosen) for tap in forward.blocks],
    )


@dataclass(frozen=True)
class Term:
    """A named, weighted loss term; `function` returns a scalar."""

    name: str
    weight: float
    function: Callable[[TeacherPass], Tensor]


def weighted(terms: Sequence[Term], forward: TeacherPass) -> tuple[Tensor, Tensor]:
    """The weighted sum of the terms, and their own detached values (T,)."""
    values = [term.function(forward) for term in terms]
    total = torch.stack([t.weight * v for t, v in zip(terms, values, strict=True)]).sum()
    return total, torch.stack(values).detach()


def nothing(forward: TeacherPass) -> Tensor:
    """0, of which every gradient is 0: a term in a stage that does without it."""
    return forward.viewed_NCHW[:0].sum()


def bn_alignment(alignment: Alignment) -> Callable[[TeacherPass], Tensor]:
    """The statistics of all BN inputs against the stored ones."""
    return lambda forward: alignment(forward.layers, forward.others)


def set_gap(alignment: Alignment, moment: int) -> Callable[[TeacherPass], Tensor]:
    """Mean over layers and channels of the squared gap of the whole set's mean (0) or std (1)."""

    def gap(forward: TeacherPass) -> Tensor:
        assert forward.others is not None
        pairs = zip(forward.layers, forward.others, strict=True)
        return torch.stack(
            [alignment.gaps(sums, rest)[moment].square().mean() for sums, rest in pairs]
        ).mean()

    return gap


def relative_set_gap(moment: int) -> Callable[[TeacherPass], Tensor]:
    """Mean over layers and channels of the squared gap of the whole set's mean (0) or std (1), in units of
    the stored std: ((m - M) / S)^2 or (s / S - 1)^2.

    A channel that is nearly constant beside the others of its layer counts less: `RELATIVE_FLOOR` of their
    mean variance is added to its own.
    """

    def gap(forward: TeacherPass) -> Tensor:
        assert forward.others is not None
        gaps = []
        for sums, rest in zip(forward.layers, forward.others, strict=True):
            gap_C, var_C = mean_gap_and_var(sums, "set", others=rest)
            floor = RELATIVE_FLOOR * sums.var_C.mean()
            wanted_C = sums.var_C + floor
            if moment == 1:
                gap_C = (var_C + floor).sqrt() - wanted_C.sqrt()
            gaps.append((gap_C.square() / wanted_C).mean())
        return torch.stack(gaps).mean()

    return gap


def input_alignment(alignment: Alignment) -> Callable[[TeacherPass], Tensor]:
    """The images' own statistics against mean 0 and std 1 (ZeroQ, Cai et al., CVPR 2020)."""
    return lambda forward: alignment([input_sums(forward.viewed_NCHW)])


def cross_entropy(forward: TeacherPass) -> Tensor:
    """Mean over images of -sum_k target_k log softmax(logits)_k."""
    assert forward.targets_NK is not None
    return F.cross_entropy(forward.logits_NK, forward.targets_NK)


def soft_inception(forward: TeacherPass) -> Tensor:
    """Mean over images of (p_y - t)^2, y the class of the largest target and t that target (IntraQ, Zhong et
    al., CVPR 2022)."""
    assert forward.targets_NK is not None
    wanted_N, classes_N = forward.targets_NK.max(1)
    found_N = forward.logits_NK.softmax(1).gather(1, classes_N[:, None])[:, 0]
    return (found_N - wanted_N).square().mean()


def confidence_shortfall(forward: TeacherPass) -> Tensor:
    """Mean over images of relu(log t - log p_y), y the class of the largest target and t that target: an
    image may be surer of its class than asked, not less."""
    assert forward.targets_NK is not None
    wanted_N, classes_N = forward.targets_NK.max(1)
    found_N = forward.logits_NK.log_softmax(1).gather(1, classes_N[:, None])[:, 0]
    return (wanted_N.log() - found_N).relu().mean()


def marginal_distance(centres: ClassCentres, lower: float, upper: float) -> Callable[[TeacherPass], Tensor]:
    """Mean of relu(lower - d) + relu(d - upper) over the images whose class has a centre, d the cosine
    distance 1 - cos between an image's features and it (IntraQ)."""

    def loss(forward: TeacherPass) -> Tensor:
        assert forward.features_NF is not None and forward.targets_NK is not None
        centres_NF, known_N = centres.of(forward.targets_NK.argmax(1))
        distance_N = 1 - F.cosine_similarity(forward.features_NF, centres_NF, dim=1)
        outside_N = (lower - distance_N).relu() + (distance_N - upper).relu()
        return torch.where(known_N, outside_N, 0.0).sum() / known_N.sum().clamp_min(1)

    return loss


def output_range(forward: TeacherPass) -> Tensor:
    """Mean over images of min_k - max_k of the teacher's outputs: negative, lower where they spread (Sony
    Model Compression Toolkit, data generation). k goes over all values of an output tensor; of several the
    mean is taken, of none it is 0."""
    # Not aminmax: torch 2.10 and 2.11 have no derivative of it.
    ranges = [(each.flatten(1).amin(1) - each.flatten(1).amax(1)).mean() for each in forward.filled_outputs]
    return torch.stack(ranges).mean() if ranges else forward.viewed_NCHW.new_zeros(())


def total_variation_l2(forward: TeacherPass) -> Tensor:
    """Sum of the 2-norms of the four difference tensors (horizontal, vertical, both diagonals) of the whole
    batch, neither squared nor averaged (DeepInversion, Yin et al., CVPR 2020). Of signals there is one."""
    x = forward.viewed_NCHW
    if x.dim() == 3:
        return _norm(x[..., 1:] - x[..., :-1], 3)
    differences = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    return torch.stack([_norm(d, d.dim()) for d in differences]).sum()


def mean_image_norm(forward: TeacherPass) -> Tensor:
    """mean_n ||x_n||_2 (DeepInversion's ImageNet L2 term)."""
    return _norm(forward.viewed_NCHW, forward.viewed_NCHW.dim() - 1).mean()


def batch_norm_l2(forward: TeacherPass) -> Tensor:
    """||x||_2 of the whole batch (DeepInversion's CIFAR L2 term)."""
    return _norm(forward.viewed_NCHW, forward.viewed_NCHW.dim())


def gram_eigenvalues(images_NCHW: Tensor) -> Tensor:
    """Eigenvalues (N,) of the cosine similarities between the images, rising; they add up to N, and are all 1
    where no two images correlate."""
    rows = F.normalize(images_NCHW.flatten(1), dim=1)
    return torch.linalg.eigvalsh(rows @ rows.T)


def sample_correlation(gaussian_eigenvalues: Mapping[int, Tensor]) -> Callable[[TeacherPass], Tensor]:
    """Mean squared difference between the images' `gram_eigenvalues` and those of as many Gaussian images:
    sample correlation inhibition as in DSG's public code (Qin et al., TPAMI 2023), without its eigenvectors.

    Args:
        gaussian_eigenvalues: batch size -> (N,), rising.
    """

    def loss(forward: TeacherPass) -> Tensor:
        images = forward.viewed_NCHW
        return (gram_eigenvalues(images) - gaussian_eigenvalues[len(images)]).square().mean()

    return loss


def _norm(x: Tensor, num_dims: int = 1) -> Tensor:
    """The 2-norm over the last dimensions; not flattened first, for what a flat index costs in a kernel."""
    return (x.square().sum(tuple(range(-num_dims, 0))) + 1e-12).sqrt()


def mean_zscore(layers: Sequence[LayerSums]) -> Tensor:
    """Sum over layers of ||(m - M) / sqrt((s + e)^2 + (S + e)^2)||, batch statistics, e = 1e-6 (GZSQ's LZ,
    Sharma et al., arXiv 2112.02834). 0 where the means agree, whatever the standard deviations."""
    return torch.stack([_norm(gap / scale) for gap, _, scale in map(_zscore_parts, layers)]).sum()


def spread_zscore(layers: Sequence[LayerSums]) -> Tensor:
    """The same of the standard deviations, ||(s - S) / ...||: what LZ leaves free."""
    return torch.stack([_norm(gap / scale) for _, gap, scale in map(_zscore_parts, layers)]).sum()


def _zscore_parts(sums: LayerSums) -> tuple[Tensor, Tensor, Tensor]:
    mean_gap, var = mean_gap_and_var(sums, "batch")
    std, target = (var + ZSCORE_EPSILON**2).sqrt(), sums.var_C.sqrt()
    scale = ((std + ZSCORE_EPSILON).square() + (target + ZSCORE_EPSILON).square()).sqrt()
    return mean_gap, std - target, scale
