"""The slack around a teacher's statistics (DSG, Zhang et al., CVPR 2021): how far Gaussian images are off."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zsq.core.errors import NonFiniteError
from zsq.core.seeding import torch_generator
from zsq.engine.executed import images_at_once
from zsq.engine.objectives import gram_eigenvalues
from zsq.engine.parameterise import gaussian
from zsq.engine.statistics import Alignment, LayerSums, Scope, TappedTeacher, joined


def slacks(layers: Sequence[LayerSums], epsilon: float, scope: Scope = "sample") -> tuple[Tensor, Tensor]:
    """Slack alignment's margins (L,), (L,): the epsilon-percentile of |gap| over channels, in sample scope
    over samples too, for the mean and for the std.

    Raises:
        NonFiniteError: a layer's statistics are not finite.
    """
    plain = Alignment(scope, unbiased=True)
    gaps = [plain.gaps(sums) for sums in layers]
    mean_L = torch.stack([mean.abs().flatten().quantile(epsilon) for mean, _ in gaps])
    spread_L = torch.stack([spread.abs().flatten().quantile(epsilon) for _, spread in gaps])
    if not bool((mean_L + spread_L).isfinite().all()):
        raise NonFiniteError(
            "dsg's slack is NaN or infinite: the teacher overflows on Gaussian images",
            "finite statistics of every layer",
            "check the teacher's weights, mean and std, or use another method",
        )
    return mean_L, spread_L


@torch.no_grad()
def gaussian_layers(
    tapped: TappedTeacher, count: int, generator: torch.Generator, device: str
) -> list[LayerSums]:
    """The statistics of `count` Gaussian images."""
    images = gaussian((count, *tapped.spec.shape), generator)
    at_once = images_at_once(tapped.network, tapped.spec, count)
    return joined([tapped(chunk.to(device))[1] for chunk in images.split(at_once)])


def gaussian_eigenvalues(shape: Sequence[int], seed: int) -> Tensor:
    """Eigenvalues (N,) of the correlation of Gaussian images, the same for all batches of a size."""
    return gram_eigenvalues(gaussian(shape, torch_generator(seed, shape[0], "dsg inhibition")))
