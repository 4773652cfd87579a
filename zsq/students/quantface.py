"""QuantFace: an embedding network is quantized by regression on its own embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from zsq.contract import Facts, Fit, Teacher
from zsq.core.errors import MismatchError
from zsq.core.options import Options, scales_with_iterations
from zsq.fitting.calibration import observe, searched_activation
from zsq.fitting.trained import TrainedStudent, settle_ranges
from zsq.fitting.training import Course, TrainingOptions
from zsq.placement.sites import Placement
from zsq.quantizers.extremes import RunningExtremes, SlopeMinMax
from zsq.quantizers.running import CurrentMinMax
from zsq.tasks.embed import Embed


class QuantFaceOptions(TrainingOptions):
    """100 steps of 64 images; ranges stop growing after step 50.

    Published: iterations=45000 batch=512 optimizer=sgd learning_rate=0.1 weight_decay=5e-4 schedule=step
    decay_every=40909 batch_norm=train range_iterations=299 shift=0.
    """

    iterations: int | None = Field(100, ge=0)
    batch: int = Field(64, ge=1)
    # So few images are soon known by heart: at ten times the rate they fit better and other faces worse.
    learning_rate: float = Field(1e-4, gt=0)
    nesterov: bool = True
    decay_every: int = scales_with_iterations(91, ge=1)
    clip_norm: float | None = Field(5.0, gt=0)
    # `mse`: of least Lp error on the float network, fixed from the start, in place of the running extremes.
    observer: Literal["extremes", "mse"] = "extremes"
    range_iterations: int = scales_with_iterations(50, ge=1)


class QuantFace(TrainedStudent):
    """Weights per output channel and slopes per layer, between their extremes at each step; activations per
    tensor, between the extremes so far. Every layer has the same bits unless `first_last` says otherwise."""

    name = "quantface"
    facts = Facts(
        paper="QuantFace, Boutros, Damer and Kuijper, ICPR 2022 (arXiv:2206.10526)",
        summary="trained against the teacher's normalised embeddings, without labels; for embedding networks",
        deviations=(
            "100 steps of 64 images and ranges kept after step 50, instead of 45,000 steps of 512 and 299",
            "Adam 1e-4 with cosine instead of SGD 0.1, and images moved by up to 3 pixels",
            "batch norm keeps the teacher's statistics; only its affine part trains",
            "activations are quantized where they enter a layer; the residual stream stays float",
            "the slopes of one PReLU layer share a grid",
            "a weight channel of one sign has zero in its range, so that its zero point is on the grid; the "
            "public code gives it a range of its own",
        ),
    )
    options_class: ClassVar[type[Options]] = QuantFaceOptions
    options: QuantFaceOptions

    quantizes_slopes = True

    def check_teacher(self, teacher: Teacher) -> None:
        """Refuse a teacher of another task.

        Raises:
            MismatchError: it does not embed.
        """
        if not isinstance(teacher.task, Embed):
            found = f"teacher {teacher.name} has task '{teacher.task.name}'"
            raise MismatchError(found, "an embedding network", "use lsq-kd")

    def loss(self, student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
        """See `embedding_regression`."""
        return embedding_regression(student_ND, teacher_ND)

    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """Ranges of weights and slopes are set anew at every step. Those of activations grow with the
        batches, or are those of the least error in the float network."""
        if self.options.observer == "mse":
            found = observe(placement, fit.teacher.spec, fit.pixels_NCHW, self.runtime.device)
            for site, histogram in found.items():
                placement.put(site, searched_activation(histogram, site.bits))
        else:
            for site in placement.of_kind("activation"):
                placement.put(site, RunningExtremes(site.bits))
        for site in placement.of_kind("weight"):
            is_slope = placement.weight(site).dim() == 1
            placement.put(site, (SlopeMinMax if is_slope else CurrentMinMax)(site.bits))

    def course(self, placement: Placement, fit: Fit) -> Course:
        """As every student; ranges of activations stop growing after some steps."""
        return replace(super().course(placement, fit), before_step=self._range_rule(placement))

    def settle(self, placement: Placement) -> None:
        """Fix every grid where it is now."""
        settle_ranges(placement)

    def _range_rule(self, placement: Placement) -> Callable[[int], None]:
        observers = [m for m in placement.network.modules() if isinstance(m, RunningExtremes)]

        def rule(step: int) -> None:
            for observer in observers:
                observer.growing.fill_(step <= self.options.range_iterations)

        return rule


def embedding_regression(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Mean squared difference of embeddings of length 1, over N and D: 2 (1 - cosine) / D."""
    return F.mse_loss(F.normalize(student_ND), F.normalize(teacher_ND))
