"""BRECQ: block by block, first the rounding of the weights, then the steps of the activations."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from zsq.contract import Facts, Fit
from zsq.core.errors import MismatchError
from zsq.core.options import Options
from zsq.fitting.reconstruction import ParameterGroup, Phase
from zsq.fitting.unit_losses import rounding_loss, unit_error
from zsq.fitting.unitwise import UnitwiseOptions, UnitwiseStudent
from zsq.placement.units import Unit
from zsq.widths import MOST_BITS, Bits, GridWidth


class BRECQOptions(UnitwiseOptions):
    """Constants of BRECQ; its published `rounding_weight` for MobileNetV2 is 0.1.

    `fisher` weights each squared error by (|g| + 1)^2, g the gradient by the block's output of KL(teacher ||
    student), a mean over 32 images; the public code has it and leaves it off.
    """

    second_input: GridWidth | None = MOST_BITS
    fisher: bool = False
    reconstruct_first: bool = False
    # Iterations for activations as a share of those for weights: 5,000 of 20,000.
    activation_share: float = Field(0.25, ge=0)
    activation_learning_rate: float = Field(4e-4, gt=0)
    activation_exponent: float = Field(2.4, gt=0)


class BRECQ(UnitwiseStudent):
    """Learns the rounding of all layers of a residual block at once; then activation steps, block by
    block."""

    name = "brecq"
    facts = Facts(
        paper="BRECQ, Li et al. 2021 (arXiv:2102.05426)",
        summary="learned rounding of weights, block by block, then learned activation steps",
        deviations=(
            "2,000 iterations per block instead of 20,000 where the network takes 64 px or less, and 500 "
            "instead of 5,000 for activations",
            "with fewer iterations than published the rounding learns as many times faster",
            "squared errors count alike, as in the public code; the paper's Fisher weights are fisher=true "
            "and need a classifier",
            "beta falls one iteration later than in the public code",
            "an activation beyond its range counts as clipped in gradients, as in LSQ, whose factor "
            "1 / sqrt(N Qp) they have; in the public code it is inside up to half a step further",
            "a weight channel of one sign has zero in its range, so that its zero point is on the grid; the "
            "public code gives it a range of its own",
            "activation ranges from all images instead of 64",
            "the residual stream stays in float; residual_stream=quantized shares the next layer's quantizer",
        ),
    )
    options_class: ClassVar[type[Options]] = BRECQOptions
    options: BRECQOptions

    def phases(self, bits: Bits) -> tuple[Phase, ...]:
        """First the weights, with activations in float; then activation steps, on inputs from the float
        network."""
        options = self.options
        weights = Phase(
            name="weights",
            kinds=("weight",),
            groups=(ParameterGroup("rounding", options.rounding_rate),),
            inputs="quantized",
            losses=(unit_error(), rounding_loss(options.rounding_weight)),
            iterations=options.iterations,
            annealing=self.annealing,
            weighted=options.fisher,
        )
        activations = Phase(
            name="activations",
            kinds=("activation",),
            groups=(ParameterGroup("activation step", options.activation_learning_rate, cosine=True),),
            inputs="float",
            losses=(unit_error(options.activation_exponent),),
            iterations=round(options.iterations * options.activation_share),
            annealing=self.annealing,
        )
        return (weights, activations)

    def fixes(self, unit: Unit, index: int) -> bool:
        """The first layer is rounded to nearest, unless the options say otherwise."""
        return index == 0 and not self.options.reconstruct_first

    def check(self, fit: Fit) -> None:
        """Refuse `fisher` for a teacher without classes, too.

        Raises:
            MismatchError: also for that.
        """
        super().check(fit)
        teacher = fit.teacher
        if self.options.fisher and not teacher.task.has_classes:
            found = f"fisher=true for teacher {teacher.name} of task '{teacher.task.name}'"
            raise MismatchError(found, "a classifier, whose logits give the weights", "leave fisher out")
