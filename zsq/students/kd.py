"""Distillation as Hinton et al. have it, in full precision or through grids that are set once."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from zsq.contract import Facts, Fit, Teacher
from zsq.core.errors import OptionError
from zsq.core.layout import channels_last
from zsq.core.options import Options, later
from zsq.core.runtime import Runtime
from zsq.core.seeding import global_rng_of, torch_generator
from zsq.engine.estimate import forward_gflops, network_gflops
from zsq.fitting.another import in_place_of
from zsq.fitting.calibration import observe, searched_activation, searched_weight
from zsq.fitting.losses import distillation, imitation
from zsq.fitting.trained import FLOAT_STEP, FORWARD_STEP, TrainedStudent
from zsq.fitting.training import TrainingOptions
from zsq.passes import PASSES
from zsq.placement.sites import Placement, place
from zsq.quantizers.grids import FakeQuantizer, Quantizer
from zsq.teacher.names import load_network
from zsq.widths import FLOAT_BITS, Bits

# For a network with fresh weights: with fewer images or epochs it stays far below the teacher.
FEW_IMAGES, FEW_EPOCHS = 5000, 20
FLOAT = Bits(FLOAT_BITS, FLOAT_BITS)


class KDOptions(TrainingOptions):
    """The loss is (1 - a) CE + a T^2 KL with a = `share`; CE is to the teacher's top-1 class.

    `network` is another network than the teacher's: `file:CARD`, with the card's weights where it names some,
    or `cifar10:NAME`, with fresh ones. `start=random`: fresh weights, of the teacher's network too. What does
    not start at the teacher is trained in float first, and then once more with its grids.
    """

    network: str | None = later(None)
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
            "starts from the teacher's weights; network=file:CARD for another network, start=random for a "
            "fresh one",
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
    start_options = ("start", "network")

    def __init__(self, options: KDOptions, runtime: Runtime) -> None:
        """Prepare the training.

        Raises:
            OptionError: fresh weights with frozen batch norms, whose statistics are then of no image.
        """
        if options.start == "random" and options.batch_norm == "frozen":
            raise OptionError("start=random with batch_norm=frozen", "batch_norm=train")
        super().__init__(options, runtime)
        if options.network is not None:
            self.refused_passes = dict.fromkeys(PASSES, "it is for the teacher's network, not for another")

    @property
    def quantizes_teacher(self) -> bool:
        """Not where another network is trained."""
        return self.options.network is None

    def images_trained(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """Of both courses, where there are two."""
        courses = 2 if self._has_float_course(bits) else 1
        return courses * super().images_trained(teacher, num_images, bits)

    def training_work(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """Of both courses; another network is as much work as it has operations beside the teacher's."""
        steps = [1.0 if bits.quantize() else FLOAT_STEP] + [FLOAT_STEP] * self._has_float_course(bits)
        size = self._size(teacher)
        work = sum(FORWARD_STEP + size * (step - FORWARD_STEP) for step in steps)
        return work * super().images_trained(teacher, num_images, bits)

    def _size(self, teacher: Teacher) -> float:
        """Operations of the network that is trained, in those of the teacher's."""
        if self.options.network is None:
            return 1.0
        network, spec, _ = load_network(self.options.network, torch_generator(0, 0, "kd start"), True)
        return network_gflops(network, spec) / forward_gflops(teacher)

    def _has_float_course(self, bits: Bits) -> bool:
        other = self.options.network is not None or self.options.start == "random"
        return other and bits.quantize()

    def float_network(self, fit: Fit) -> nn.Module:
        """The teacher's network, a fresh one, or another one; those trained where grids shall follow.

        Raises:
            OptionError: fresh weights with frozen batch norms. MismatchError: other images or outputs than
                the teacher's.
        """
        options, teacher = self.options, fit.teacher
        fresh = options.start == "random"
        if options.network is not None:
            generator = torch_generator(fit.seed, 0, "kd start")
            network, spec, fresh = load_network(options.network, generator, fresh)
            if fresh:
                self._check_fresh(len(fit.pixels_NCHW))
            network = in_place_of(teacher, network, spec, options.network)
        elif fresh:
            network = _fresh(teacher.network, fit.seed)
        else:
            return teacher.network
        return self._trained(network, fit) if self._has_float_course(fit.bits) else network

    def _check_fresh(self, num_images: int) -> None:
        if self.options.batch_norm == "frozen":
            raise OptionError(
                f"network={self.options.network} with fresh weights and batch_norm=frozen", "batch_norm=train"
            )
        epochs = self.options.steps(num_images) * self.options.batch / num_images
        if num_images < FEW_IMAGES or epochs < FEW_EPOCHS:
            warnings.warn(
                f"a network with fresh weights sees {num_images} images for {epochs:.0f} epochs: that is "
                f"little, {FEW_IMAGES} for {FEW_EPOCHS} is about the least",
                stacklevel=2,
            )

    def _trained(self, network: nn.Module, fit: Fit) -> nn.Module:
        """`network` after a course in float."""
        placement = place(network, fit.teacher.example(), FLOAT, fold=False)
        placed = channels_last(placement.network.to(self.runtime.device))
        course = replace(self.course(placement, fit), structure=(fit.teacher.network, FLOAT))
        self._training.run(course, fit)
        return placed

    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """On every tensor the grid of the least error, which stays."""
        found = observe(placement, fit.teacher.spec, fit.pixels_NCHW, self.runtime.device)
        for site, histogram in found.items():
            placement.put(site, searched_activation(histogram, site.bits))
        for site in placement.of_kind("weight"):
            placement.put(site, searched_weight(placement.weight(site), site.bits))

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
    with global_rng_of(torch_generator(seed, 0, "kd start")):
        for module in copied.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    return copied
