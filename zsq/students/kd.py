"""Distillation as Hinton et al. have it, in full precision or through grids that are set once."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zsq.contract import Facts, Fit
from zsq.core.errors import OptionError
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.fitting.calibration import observe, searched_activation, weight_quantizer
from zsq.fitting.losses import distillation, imitation
from zsq.fitting.trained import TrainedStudent
from zsq.fitting.training import TrainingOptions
from zsq.placement.sites import Placement
from zsq.quantizers.grids import FakeQuantizer, Quantizer


class KDOptions(TrainingOptions):
    """The loss is (1 - a) CE + a T^2 KL with a = `share`; CE is to the teacher's top-1 class.

    `start=random` distils into a network of the teacher's architecture with fresh weights.
    """

    temperature: float = Field(4.0, gt=0)
    share: float = Field(1.0, ge=0, le=1)
    start: Literal["teacher", "random"] = "teacher"


class KD(TrainedStudent):
    """Affine grids of the least error per output channel of a weight, per tensor of an activation."""

    name = "kd"
    facts = Facts(
        paper="Distilling the Knowledge in a Neural Network, Hinton et al. 2015 (arXiv:1503.02531)",
        summary="trained against the teacher's softened outputs, grids fixed; W32A32 distils a float network",
        deviations=(
            "starts from the teacher's weights; start=random for a fresh network of the same architecture",
            "without labels: share = 1, and cross-entropy, where asked for, is to the teacher's top-1 class",
            "of other tasks than classify, the task's own loss against the teacher",
            "nothing is quantized in the paper: our grids are of the least L2.4 error, STE with clipping",
            "Adam 5e-4 with cosine, 160 times 128 images, batch norm frozen: ours",
        ),
    )
    options_class: ClassVar[type[Options]] = KDOptions
    options: KDOptions
    takes_tasks = True
    trains_floats = True
    starts_from = frozenset({"affine"})
    start_options = ("start",)

    def __init__(self, options: KDOptions, runtime: Runtime) -> None:
        """Prepare the training.

        Raises:
            OptionError: fresh weights with frozen batch norms, whose statistics are then of no image.
        """
        if options.start == "random" and options.batch_norm == "frozen":
            raise OptionError("start=random with batch_norm=frozen", "batch_norm=train")
        super().__init__(options, runtime)

    def float_network(self, fit: Fit) -> nn.Module:
        """The teacher's network, or a fresh one."""
        network = fit.teacher.network
        return network if self.options.start == "teacher" else _fresh(network, fit.seed)

    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """On every tensor the grid of the least error, which stays."""
        found = observe(placement, fit.teacher.spec, fit.pixels_NCHW, self.runtime.device)
        for site, histogram in found.items():
            placement.put(site, searched_activation(histogram, site.bits))
        for site in placement.of_kind("weight"):
            placement.put(site, weight_quantizer(placement.weight(site), site.bits, search=True))

    def taken_over(self, quantizer: Quantizer) -> nn.Module:
        """The same grid, which stays."""
        assert isinstance(quantizer, FakeQuantizer)
        return quantizer.as_learned(False)

    def loss(self, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
        """`zsq.fitting.losses.distillation` and `imitation`, weighted."""
        share = self.options.share
        loss = share * distillation(student_NK, teacher_NK, self.options.temperature)
        return loss if share == 1 else loss + (1 - share) * imitation(student_NK, teacher_NK)


def _fresh(network: nn.Module, seed: int) -> nn.Module:
    """A copy in which every layer has the parameters and statistics that a new layer starts with."""
    copied = copy.deepcopy(network).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(torch_generator(seed, 0, "kd start").get_state())
        for module in copied.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    return copied
