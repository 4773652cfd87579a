"""What the engine must know of a unit on all images: values of both networks there, and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from zsq.fitting.features import Features, fits_in_memory
from zsq.fitting.frontier import Frontier, Images
from zsq.placement.subgraphs import up_to
from zsq.placement.units import Unit
from zsq.quantizers.grids import Quantizer

# Of the gradients that weight errors, in the public code.
PUBLISHED_BATCH = 32


@dataclass(frozen=True)
class Beyond:
    """What follows a unit: `tail` takes images and the unit's output, `outputs` are the teacher's."""

    tail: fx.GraphModule
    images: Images
    outputs: Features

    def rows(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        """Minibatch of images and of the teacher's outputs."""
        return self.images.rows(index_N), self.outputs.rows(index_N)


@dataclass(frozen=True)
class UnitData:
    """Features of one unit; `quantized`, the student's input, is None where it is the float one or unused.

    `beyond` is there for a phase that looks at the network's output.
    """

    full: Features
    quantized: Features | None
    target: Features
    importance: Features | None
    num_images: int
    channels: int
    beyond: Beyond | None = None

    def rows(self, index_N: Tensor) -> tuple[Tensor | None, ...]:
        """Minibatch of float input, student's input, target and importance; of images and teacher's outputs
        where something lies beyond."""
        features = (self.full, self.quantized, self.target, self.importance)
        rows = tuple(None if part is None else part.rows(index_N) for part in features)
        return rows if self.beyond is None else (*rows, *self.beyond.rows(index_N))


def gather(
    full: Frontier,
    student: Frontier,
    unit: Unit,
    later: Sequence[Unit],
    *,
    sees_student: bool,
    weighted: bool,
) -> UnitData:
    """Run both networks on all images, from what is known of them to the unit's output.

    Args:
        full, student: of captured graphs with the same nodes; the student's later units are still float.
        later: the units whose turn is still to come; what they do not follow from is forgotten.
        sees_student: keep the student's input too, if it is another one.
        weighted: keep importances too.
    """
    images = full.images
    num, runtime = len(images.pixels_NCHW), images.runtime
    for frontier in (full, student):
        frontier.keep([unit.input, *(each.input for each in later)])
    entering, leaving = full.features([unit.input, unit.output])
    quantized = None
    if sees_student and _quantizes(student.network, unit.input):
        (quantized,) = student.features([unit.input])
    importance = None
    if weighted:
        resident = fits_in_memory(num, [unit.output_shape])
        importance = Features(num, unit.output_shape, runtime, resident)
        _weigh(full.network, student.network, unit, importance, images)
    channels = len(student.network.get_parameter(f"{unit.layers[-1]}.weight"))
    return UnitData(entering, quantized, leaving, importance, num, channels)


def _quantizes(network: fx.GraphModule, name: str) -> bool:
    """Whether a quantizer stands before the node `name`."""
    return any(isinstance(module, Quantizer) for module in up_to(network, [name]).modules())


def _weigh(
    full: fx.GraphModule, student: fx.GraphModule, unit: Unit, importance: Features, images: Images
) -> None:
    """(|g| + 1)^2 with g the gradient by the unit's output of KL(teacher || student), a mean over batches of
    32 images, with the unit's rounding still soft (BRECQ, Li et al. 2021, public code)."""
    (output,) = (node.all_input_nodes[0].name for node in student.graph.nodes if node.op == "output")
    student, full = up_to(student, [unit.output, output]), up_to(full, [output])
    for start, norm in images.batches():
        with torch.no_grad():
            (teacher_NK,) = full(norm)
        with torch.enable_grad():
            value, student_NK = student(norm.requires_grad_())
            log_NK = F.log_softmax(student_NK, dim=1)
            loss = F.kl_div(log_NK, F.log_softmax(teacher_NK, dim=1), reduction="sum", log_target=True)
            (gradient,) = torch.autograd.grad(loss / PUBLISHED_BATCH, value)
        importance.write(start, (gradient.abs() + 1).square())
