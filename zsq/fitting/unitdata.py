"""What the engine must know of a unit on all images: values of both networks there, and their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zsq.core.imagespec import ImageSpec
from zsq.core.layout import maps_channels_last
from zsq.core.runtime import Runtime
from zsq.fitting.calibration import norm_batches
from zsq.fitting.features import Features, fits_in_memory
from zsq.placement.subgraphs import up_to
from zsq.placement.units import Unit
from zsq.quantizers.grids import Quantizer

# Of the gradients that weight errors, in the public code.
PUBLISHED_BATCH = 32


@dataclass(frozen=True)
class Images:
    """uint8 images of a spec, and where they are computed on."""

    spec: ImageSpec
    pixels_NCHW: Tensor
    runtime: Runtime

    def batches(self) -> Iterator[tuple[int, Tensor]]:
        """(index of the first image, what a network takes), channels_last."""
        start = 0
        for norm in norm_batches(self.spec, self.pixels_NCHW, self.runtime.device):
            yield start, norm
            start += len(norm)

    def rows(self, index_N: Tensor) -> Tensor:
        """What a network takes of these images, channels_last."""
        pixels = self.pixels_NCHW[index_N].to(self.runtime.device)
        return maps_channels_last(self.spec.pixels_to_norm(pixels))


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
    full: fx.GraphModule,
    student: fx.GraphModule,
    unit: Unit,
    images: Images,
    *,
    sees_student: bool,
    weighted: bool,
) -> UnitData:
    """Run both networks once on all images.

    Args:
        full, student: captured graphs with the same nodes; the student's later units are still float.
        sees_student: keep the student's input too, if it is another one.
        weighted: keep importances too.
    """
    num, runtime = len(images.pixels_NCHW), images.runtime
    prefix = up_to(student, [unit.input])
    differs = sees_student and any(isinstance(module, Quantizer) for module in prefix.modules())
    shapes = [unit.input_shape] * (1 + differs) + [unit.output_shape] * (1 + weighted)
    resident = fits_in_memory(num, shapes)
    entering, leaving = (
        Features(num, shape, runtime, resident) for shape in (unit.input_shape, unit.output_shape)
    )
    fill(up_to(full, [unit.input, unit.output]), (entering, leaving), images)
    quantized = Features(num, unit.input_shape, runtime, resident) if differs else None
    if quantized is not None:
        fill(prefix, (quantized,), images)
    importance = Features(num, unit.output_shape, runtime, resident) if weighted else None
    if importance is not None:
        _weigh(full, student, unit, importance, images)
    channels = len(student.get_parameter(f"{unit.layers[-1]}.weight"))
    return UnitData(entering, quantized, leaving, importance, num, channels)


@torch.no_grad()
def fill(network: nn.Module, features: tuple[Features, ...], images: Images) -> None:
    """Write what `network` gives of all images, a tuple."""
    for start, norm in images.batches():
        for feature, values in zip(features, network(norm), strict=True):
            feature.write(start, values)


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
