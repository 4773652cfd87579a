"""DSG, Diverse Sample Generation (Zhang, Qin, Ding, Gong, Yan, Tao, Li, Yu, Liu; CVPR 2021).

Sample correlation inhibition is of the journal version (Qin, Ding, Zhang, Wang, Liu, Lu; IEEE TPAMI 2023,
arXiv 2109.00212), whose generator network is `dsg_generative`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from zsq.contract import Facts, StepLog, SyntheticBatch
from zsq.core.effort import Curve
from zsq.core.imagespec import ImageSpec
from zsq.core.options import later
from zsq.core.seeding import torch_generator
from zsq.engine.invert import Inversion, InversionMethod, Stage, warn_of_idle_terms
from zsq.engine.joint import JointInversion, WithInput
from zsq.engine.objectives import (
    Term,
    bn_alignment,
    cross_entropy,
    input_alignment,
    mean_image_norm,
    sample_correlation,
    total_variation_l2,
)
from zsq.engine.parameterise import Initialiser, Pixels, gaussian, uniform
from zsq.engine.schedules import Iterations, Patience, PlateauOptions, Rate
from zsq.engine.slack import gaussian_eigenvalues, gaussian_layers, slacks
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.targets import class_count, uniform_labels
from zsq.plan import Group

STARTS: dict[str, Initialiser] = {"gaussian": gaussian, "uniform": uniform}


class DSGOptions(PlateauOptions):
    """The paper's objective with the public code's optimizer constants.

    The code also adds CE to random labels (2.0), TV (0.01) and L2 (0.01), starts from U[0, 1)
    (`init=uniform`) and squares its doubled gap (`enhancement=4`): set them to follow it.

    `inhibition` is the weight of sample correlation inhibition, of the journal version: 1e-4 in the public
    code. `scope="set"` is our own variant: the slack is around the statistics of all images together. It has
    neither sample enhancement nor labels.
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
    inhibition: float = later(0.0, ge=0)
    scope: Literal["sample", "set"] = later("sample")

    @model_validator(mode="after")
    def _with_effect(self) -> DSGOptions:
        if self.scope == "set" and self.ce_weight:
            raise ValueError("ce_weight has no effect with scope=set, whose images have no labels")
        if self.scope == "set" and self.enhancement != type(self).model_fields["enhancement"].default:
            raise ValueError("enhancement has no effect with scope=set: it is of single images")
        return self


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
            "option inhibition (Qin et al., TPAMI 2023) follows the public code, without its term on "
            "eigenvectors, whose signs are arbitrary; its Gaussian images are drawn once",
            "option scope=set is our own: statistics of all images together, and no sample enhancement",
        ),
    )

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """64, as in the public README."""
        return 64

    @classmethod
    def grouping(cls, options: DSGOptions) -> int | None:
        """The whole set where its statistics are matched."""
        return None if options.scope == "set" else cls.batches_per_group

    def prepare(self, seed: int, cache: Path, log: StepLog) -> None:
        """Measure the slacks on one batch of Gaussian images, the same for all groups."""
        self.tapped = TappedTeacher(self.teacher, self.name)
        self.seed = seed
        batch = self.default_batch(self.teacher.spec)
        generator = torch_generator(seed, 0, "dsg slack")
        layers = gaussian_layers(self.tapped, batch, generator, self.runtime.device)
        self.mean_slack_L, self.spread_slack_L = slacks(layers, self.options.epsilon, self.options.scope)

    def labels(self, group: Group) -> Tensor | None:
        """Random classes for the code's CE term; the paper uses none."""
        if not self.options.ce_weight:
            return None
        return uniform_labels(group, class_count(self.teacher, self.name))

    def synthesize(self, group: Group, log: StepLog) -> SyntheticBatch:
        """Batch after batch, or the whole set together."""
        if self.options.scope == "sample":
            return super().synthesize(group, log)
        batches, history = self.joint_inversion(group.batch_sizes).run(
            group.batch_sizes, group.generator("synthesis"), log
        )
        warn_of_idle_terms(self.name, history)
        return SyntheticBatch(torch.cat([batch.cpu() for batch in batches]), None, history.last())

    def inversion(self, batch: int) -> Inversion:
        """The paper's objective on pixels, with the code's further terms where the options weigh them."""
        o = self.options
        weights_NL = enhancement_weights(batch, len(self.tapped.names), o.enhancement, self.runtime.device)
        terms = [
            Term("bn", 1.0, bn_alignment(self._slack_alignment(sample_weights_NL=weights_NL))),
            Term(
                "input",
                o.input_weight,
                input_alignment(Alignment("sample", unbiased=True, over_channels="sum")),
            ),
            Term("ce", o.ce_weight, cross_entropy),
            *self._image_terms([batch]),
        ]
        return Inversion(self.tapped, self._pixels(batch), terms, [Stage(o.iterations)], self.runtime)

    def joint_inversion(self, batch_sizes: Sequence[int]) -> JointInversion:
        """Our variant: the same slack around the statistics of the whole set."""
        o = self.options
        own = Alignment("set", unbiased=True, over_channels="sum")
        alignment = self._slack_alignment()
        terms = [
            Term("bn", 1.0, lambda forward: alignment(forward.layers[1:], (forward.others or ())[1:])),
            Term("input", o.input_weight, lambda forward: own(forward.layers[:1], forward.others)),
            *self._image_terms(batch_sizes),
        ]
        tapped = WithInput(self.tapped)
        return JointInversion(tapped, self._pixels, terms, (), o.iterations, self.runtime)

    def _slack_alignment(self, sample_weights_NL: Tensor | None = None) -> Alignment:
        return Alignment(
            self.options.scope,
            distance="slack",
            unbiased=True,
            over_channels="sum",
            sample_weights_NL=sample_weights_NL,
            mean_slack_L=self.mean_slack_L,
            spread_slack_L=self.spread_slack_L,
        )

    def _pixels(self, batch: int) -> Pixels:
        o, device = self.options, self.runtime.device
        start = STARTS[o.init]
        return Pixels(self.teacher.spec, batch, device, o.learning_rate, start, schedule=o.schedule)

    def _image_terms(self, batch_sizes: Sequence[int]) -> list[Term]:
        """Terms of the images alone; inhibition is divided by the number of layers, as in the public code."""
        o = self.options
        terms = [Term("tv", o.tv_weight, total_variation_l2), Term("l2", o.l2_weight, mean_image_norm)]
        if not o.inhibition:
            return terms
        shape, device = self.teacher.spec.shape, self.runtime.device
        expected = {size: gaussian_eigenvalues((size, *shape), self.seed).to(device) for size in batch_sizes}
        weight = o.inhibition / len(self.tapped.names)
        return [*terms, Term("inhibition", weight, sample_correlation(expected))]
