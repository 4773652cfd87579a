"""DAQ: grids whose steps follow the distribution of each channel, for super-resolution networks."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from zsq.contract import Facts, Fit
from zsq.core.options import Options
from zsq.fitting.trained import TrainedStudent
from zsq.fitting.training import TrainingOptions
from zsq.placement.policies import channels_last_sites, rectified_sites
from zsq.placement.sites import Placement
from zsq.quantizers.distribution import CurrentHalfSteps, activation_grid
from zsq.widths import FLOAT_BITS, Bits, WidthOrFloat


class DAQOptions(TrainingOptions):
    """`iterations=0` quantizes without training and without a look at the images. `scale_bits`: of the
    deviations of channels, 32 for float.

    The paper's training: batch=4 over 300 epochs, learning_rate=5e-5, halved at epoch 150.
    """

    iterations: int | None = Field(100, ge=0)
    batch: int = Field(4, ge=1)
    learning_rate: float = Field(5e-5, gt=0)
    temperature: float = Field(4.0, gt=0)
    scale_bits: WidthOrFloat = 8
    # Where --first-last does not say; None: as --bits.
    first_last: WidthOrFloat | None = FLOAT_BITS


class DAQ(TrainedStudent):
    """A weight has one step from its deviation; an activation a mean and a step of each channel of each
    image, measured when it passes, and levels from zero on behind a ReLU."""

    name = "daq"
    facts = Facts(
        paper="DAQ, Hong et al., WACV 2022 (arXiv:2012.11230)",
        summary="steps from the distribution of each channel of each image, for super-resolution; "
        "iterations=0 reads no image",
        deviations=(
            "the step of 2^b levels, and clipped to them; the public code takes the step of 2^(b-1) levels "
            "and behind a ReLU more levels than its bits have",
            "the graph says what is behind a ReLU; the code looks for a zero in the batch, so that one "
            "image changes how others are quantized",
            "a channel's deviation is at least 1 % of the mean one; on the code's grid it can be negative",
            "layers outside of residual blocks are quantized too, but for the first and the last one: "
            "--widths leaves others in float",
            "the target is the teacher's output, not the sharp image: L1, and for other tasks their loss",
            "Adam 5e-5 with cosine, 100 times 4 images, instead of 300 epochs",
        ),
    )
    options_class: ClassVar[type[Options]] = DAQOptions
    options: DAQOptions
    form = "distribution"
    least_bits = Bits(1, 1)
    takes_tasks = True

    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """Grids that follow their tensors; the images are not looked at."""
        rectified, channels_last = rectified_sites(placement), channels_last_sites(placement)
        for site in placement.of_kind("weight"):
            placement.put(site, CurrentHalfSteps(site.bits))
        for site in placement.of_kind("activation"):
            axis = -1 if site in channels_last else 1
            grid = activation_grid(site.bits, axis, self.options.scale_bits, site in rectified)
            placement.put(site, grid)

    def settle(self, placement: Placement) -> None:
        """Weights keep the step that they have now."""
        for site in placement.of_kind("weight"):
            quantizer = placement.get(site)
            assert isinstance(quantizer, CurrentHalfSteps)
            placement.put(site, quantizer.settled(placement.weight(site)))
