"""DSG, Diverse Sample Generation (Zhang, Qin, Ding, Gong, Yan, Tao, Li, Yu, Liu; CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from zsq.contract import Curve, Facts, StepLog
from zsq.core.errors import NonFiniteError
from zsq.core.imagespec import ImageSpec
from zsq.core.seeding import torch_generator
from zsq.engine.executed import images_at_once
from zsq.engine.invert import Inversion, InversionMethod, Stage
from zsq.engine.objectives import (
    Term,
    bn_alignment,
    cross_entropy,
    input_alignment,
    mean_image_norm,
    total_variation_l2,
)
from zsq.engine.parameterise import Initialiser, Pixels, gaussian, uniform
from zsq.engine.schedules import Iterations, Patience, PlateauOptions, Rate
from zsq.engine.statistics import Alignment, LayerSums, TappedTeacher, joined
from zsq.engine.targets import class_count, uniform_labels
from zsq.plan import Group

STARTS: dict[str, Initialiser] = {"gaussian": gaussian, "uniform": uniform}


class DSGOptions(PlateauOptions):
    """The paper's objective with the public code's optimizer constants.

    The code also adds CE to random labels (2.0), TV (0.01) and L2 (0.01), starts from U[0, 1)
    (`init=uniform`) and squares its doubled gap (`enhancement=4`): set them to follow it.
    """

    iterations: Iterations = 500
    learning_rate: Rate = 0.9
    patience: Patience = 260
    epsilon: float = Field(0.9, ge=0, le=1)
    enhancement: float = Field(2.0, ge=0)
    input_weight: float = Field(1.0, ge=0)
    ce_weight: float = Field(0.0, ge=0)
    tv_weight: float = Field(0.0, ge=0)
    l2_weight: float = Field(0.0, ge=0)
    init: Literal["gaussian", "uniform"] = "gaussian"


def slacks(layers: Sequence[LayerSums], epsilon: float) -> tuple[Tensor, Tensor]:
    """Slack alignment's margins (L,), (L,): the epsilon-percentile of |gap| over samples and channels, for
    the mean and for the std.

    Raises:
        NonFiniteError: a layer's statistics are not finite.
    """
    plain = Alignment("sample", unbiased=True)
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


def enhancement_weights(batch: int, num_layers: int, weight: float, device: str) -> Tensor:
    """Layerwise sample enhancement (N, L): sample i < L weighs layer i `weight` times, all else once."""
    return torch.ones(batch, num_layers, device=device) + (weight - 1) * torch.eye(
        batch, num_layers, device=device
    )


class DSG(InversionMethod):
    """ZeroQ's skeleton with slack distribution alignment and layerwise sample enhancement."""

    name = "dsg"
    options_class = DSGOptions
    curve = Curve(
        100,
        "MCUNet at 160 px, agreement at W6A6 63, 64, 65, 63 % at 30, 100, 300, 500 (real images 66 %), at "
        "W4A4 4, 9, 9, 13 % (real images 45 %); ResNet-20 at 32 px, agreement at W4A4 94, 93, 93 % at 100, "
        "250, 500 (real images 96 %)",
    )
    facts = Facts(
        paper="Zhang et al., Diversifying Sample Generation (DSG), CVPR 2021",
        summary="per-image BN statistics with a slack per layer; sample i stresses layer i",
        needs_batch_norm=True,
        deviations=(
            "pixels are clamped to valid values after each step",
            "statistics are tapped at BN inputs, not at the outputs of the first convolutions in order",
            "batch 64 as in the public README; the paper's batch is the number of layers",
            "the statistics of the images themselves are matched too, without slack, as in the public code",
        ),
    )

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """64, as in the public README."""
        return 64

    def prepare(self, seed: int, cache: Path, log: StepLog) -> None:
        """Measure the slacks on one batch of Gaussian images, the same for all groups."""
        self.tapped = TappedTeacher(self.teacher, self.name)
        shape = (self.default_batch(self.teacher.spec), *self.teacher.spec.shape)
        images = gaussian(shape, torch_generator(seed, 0, "dsg slack"))
        at_once = images_at_once(self.tapped.network, self.teacher.spec, len(images))
        with torch.no_grad():
            chunks = [self.tapped(chunk.to(self.runtime.device))[1] for chunk in images.split(at_once)]
        self.mean_slack_L, self.spread_slack_L = slacks(joined(chunks), self.options.epsilon)

    def labels(self, group: Group) -> Tensor | None:
        """Random classes for the code's CE term; the paper uses none."""
        if not self.options.ce_weight:
            return None
        return uniform_labels(group, class_count(self.teacher, self.name))

    def inversion(self, batch: int) -> Inversion:
        """The paper's objective on pixels, with the code's further terms where the options weigh them."""
        o = self.options
        num_layers = len(self.tapped.names)
        alignment = Alignment(
            "sample",
            distance="slack",
            unbiased=True,
            over_channels="sum",
            sample_weights_NL=enhancement_weights(batch, num_layers, o.enhancement, self.runtime.device),
            mean_slack_L=self.mean_slack_L,
            spread_slack_L=self.spread_slack_L,
        )
        pixels = Pixels(
            self.teacher.spec,
            batch,
            self.runtime.device,
            o.learning_rate,
            STARTS[o.init],
            schedule=o.schedule,
        )
        terms = [
            Term("bn", 1.0, bn_alignment(alignment)),
            Term(
                "input",
                o.input_weight,
                input_alignment(Alignment("sample", unbiased=True, over_channels="sum")),
            ),
            Term("ce", o.ce_weight, cross_entropy),
            Term("tv", o.tv_weight, total_variation_l2),
            Term("l2", o.l2_weight, mean_image_norm),
        ]
        return Inversion(self.tapped, pixels, terms, [Stage(o.iterations)], self.runtime)
