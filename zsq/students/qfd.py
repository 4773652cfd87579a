"""Quantized feature distillation: the student follows a teacher one of whose features is quantized itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, fx, nn

from zsq.contract import Facts, Fit, Teacher
from zsq.core.errors import MismatchError, OptionError
from zsq.core.imagespec import ImageSpec
from zsq.core.layout import channels_last
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.fitting.calibration import norm_batches, observe
from zsq.fitting.losses import distillation, imitation
from zsq.fitting.trained import TrainedStudent
from zsq.fitting.training import Course, Training, TrainingOptions
from zsq.graph import capture
from zsq.graph.vocabulary import is_layer
from zsq.placement.sites import Placement, last_layers
from zsq.placement.subgraphs import with_values
from zsq.quantizers.grids import Quantizer
from zsq.quantizers.intervals import IntervalActivation, IntervalQuantizer, IntervalWeight
from zsq.quantizers.observers import Observer
from zsq.tasks.nesting import Outputs
from zsq.widths import Bits, Width

Pair = tuple[Outputs, tuple[Tensor]]  # the network's outputs, and the feature


class QFDOptions(TrainingOptions):
    """The loss is KL or CE, without classes that of the task, plus `feature_weight` times the error of the
    feature: mean squared, without classes divided by the variance of the teacher's.

    `feature`: the layer whose input, in its first call, is the feature; None: the one last layer. The paper's
    form for detectors takes the finest level of the pyramid, feature_bits=8, and as `feature_weight` what
    makes the feature's a fifth of the loss.

    The paper's base for CIFAR: learning_rate=1e-3 weight_decay=1e-4 batch=256 batch_norm=train over 400
    epochs, labels: task_loss=ce is the nearest to them, with the teacher's top-1 class.
    """

    learning_rate: float = Field(1e-3, gt=0)
    feature: str | None = None
    feature_bits: Width = 4
    feature_weight: float = Field(0.5, ge=0)
    task_loss: Literal["kl", "ce"] = "kl"
    temperature: float = Field(4.0, gt=0)
    teacher_iterations: int = Field(40, ge=0)
    # `mse`: of the least error, `std`: 3 standard deviations.
    interval_init: Literal["mse", "std"] = "mse"
    # Of an interval's ends and scale, in units of their own size, for Adam.
    interval_learning_rate: float = Field(3e-3, gt=0)


class QFD(TrainedStudent):
    """Learns one interval per tensor. Weights have an even number of values around zero, and none at zero."""

    name = "qfd"
    facts = Facts(
        paper="Quantized Feature Distillation for Network Quantization, Zhu et al. 2023 (arXiv:2307.10638)",
        summary="learned intervals, trained against a quantized feature of the teacher, the pooled one or of "
        "a detector a map; for every task",
        deviations=(
            "label-free: KL to the teacher's logits instead of cross-entropy to labels; task_loss=ce takes "
            "the teacher's top-1 class",
            "settings of the optimiser are not published: Adam 1e-3, for intervals 3e-3 of their size, with "
            "cosine, 160 times 128 images after 40 for the teacher's quantizer, are ours",
            "the feature's squared error is a mean over its dimensions: the published reduction is not known",
            "without classes, the task's own loss against the teacher instead of a loss to labels, and the "
            "feature's error over the variance of the teacher's feature, since maps have any scale",
            "intervals start at the least error (interval_init=std for the published 3 standard deviations)",
            "the scale that follows a layer stands at its weight, and activations return to their place "
            "(low + scale levels), so that the student starts near the teacher",
            "the classifier is quantized like the others unless first_last says otherwise",
            "batch norm keeps the teacher's statistics; published is training with labels, batch norm too",
        ),
    )
    options_class: ClassVar[type[Options]] = QFDOptions
    form = "interval"
    options: QFDOptions
    takes_tasks = True

    def __init__(self, options: QFDOptions, runtime: Runtime) -> None:
        """Prepare both trainings, of the teacher's quantizer and of the student."""
        super().__init__(options, runtime)
        first = options.model_copy(update={"iterations": options.teacher_iterations})
        self._teaching = Training("qfd teacher", first, runtime, self._output_loss)

    def check_teacher(self, teacher: Teacher) -> None:
        """Also where it has no such feature.

        Raises:
            MismatchError: see `TrainedStudent.check_teacher`; or several last layers and no `feature`.
            OptionError: `feature` is no layer of it.
        """
        super().check_teacher(teacher)
        feature_reader(capture(teacher.network, teacher.example()), teacher.name, self.options.feature)

    def images_trained(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """With those of the teacher's feature."""
        first = self.options.teacher_iterations * self.options.batch if self.trains_at(bits) else 0
        return first + super().images_trained(teacher, num_images, bits)

    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """First intervals: of activations from the float network on the images, of weights from the
        weights."""
        search = self.options.interval_init == "mse"
        found = observe(placement, fit.teacher.spec, fit.pixels_NCHW, self.runtime.device)
        for site, histogram in found.items():
            placement.put(site, IntervalActivation(histogram, site.bits, search))
        for site in placement.of_kind("weight"):
            placement.put(site, IntervalWeight(placement.weight(site), site.bits, search))

    def course(self, placement: Placement, fit: Fit) -> Course:
        """The student follows the teacher with a quantized feature; that teacher is trained here, first."""
        network, teacher = placement.network, fit.teacher
        structure = (teacher.network, fit.bits, placement.sites)
        return replace(
            self._course(network, self._teach(fit), structure),
            taught=with_feature(network, self._reader(network, teacher)),
            target_structure=teacher.network,
        )

    @torch.no_grad()
    def settle(self, placement: Placement) -> None:
        """Put each weight in the middle of its level."""
        for site in placement.of_kind("weight"):
            weight, quantizer = placement.network.get_parameter(site.name), placement.get(site)
            assert isinstance(quantizer, IntervalWeight)
            weight.copy_(quantizer.settled(weight))

    def _reader(self, network: fx.GraphModule, teacher: Teacher) -> fx.Node:
        return feature_reader(network, teacher.name, self.options.feature)

    def _teach(self, fit: Fit) -> nn.Module:
        """The teacher with a quantized feature, trained to give its old outputs; it returns both."""
        teacher, search = fit.teacher, self.options.interval_init == "mse"
        network = channels_last(capture(teacher.network, teacher.example()))
        reader = self._reader(network, teacher)
        quantize_feature(network, reader, teacher.spec, fit.pixels_NCHW, self.options.feature_bits, search)
        course = self._course(network, teacher.network, teacher.network)
        self._teaching.run(course, fit)
        return with_feature(network, self._reader(network, teacher), quantized=True)

    def _course(self, network: nn.Module, target: nn.Module, structure: Any) -> Course:
        intervals = [module for module in network.modules() if isinstance(module, IntervalQuantizer)]
        groups = self._groups(network, intervals)
        return Course(network, target, groups, structure, after_step=_ordered(intervals))

    def _groups(self, network: nn.Module, intervals: list[IntervalQuantizer]) -> list[dict[str, Any]]:
        if self.options.optimizer == "sgd":
            return [{"params": list(network.parameters())}]
        learned = [parameter for interval in intervals for parameter in interval.parameters()]
        others = [p for p in network.parameters() if all(p is not part for part in learned)]
        groups: list[dict[str, Any]] = [{"params": others}]
        for interval in intervals:
            width = (interval.high - interval.low).item()
            rate = self.options.interval_learning_rate
            groups.append({"params": [interval.low, interval.high], "lr": rate * width})
            groups.append({"params": [interval.scale], "lr": rate * interval.scale.item()})
        return groups

    def _output_loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        if not self._task.has_classes:
            return self._task.loss(student, teacher)
        if self.options.task_loss == "ce":
            return imitation(student, teacher)
        return distillation(student, teacher, self.options.temperature)

    def total_loss(self, student: Pair, teacher: Pair) -> Tensor:
        """`loss`, which has the task's inside."""
        return self.loss(student, teacher)

    def loss(self, student: Pair, teacher: Pair) -> Tensor:
        """Of both pairs: the loss of the outputs, and the weighted error of the features."""
        (outputs, (feature,)), (wanted, (reference,)) = student, teacher
        feature_error = F.mse_loss(feature, reference)
        if not self._task.has_classes:
            variance = reference.var(correction=0)
            feature_error = feature_error / torch.where(variance > 0, variance, torch.ones_like(variance))
        return self._output_loss(outputs, wanted) + self.options.feature_weight * feature_error


def _ordered(intervals: list[IntervalQuantizer]) -> Callable[[], None]:
    def guard() -> None:
        for interval in intervals:
            interval.keep_order()

    return guard


def feature_reader(network: fx.GraphModule, teacher: str, name: str | None) -> fx.Node:
    """The first call of the layer `name`, or the call of the one layer that no other follows.

    Raises:
        MismatchError: there are several such layers, or none. OptionError: no layer has the name.
    """
    layers = [node for node in network.graph.nodes if is_layer(network, node)]
    last = last_layers(network)
    if name is None:
        if len(last) == 1:
            return last[0]
        remedy = "name one that reads the feature, feature=LAYER"
        raise MismatchError(f"teacher {teacher} has {len(last)} last layers", "one", remedy)
    named = [node for node in layers if node.target == name]
    if not named:
        several = ", ".join(dict.fromkeys(str(node.target) for node in last))
        found = f"feature={name}, which is no layer of teacher {teacher}"
        raise OptionError(found, "the name of a layer", f"such as {several or 'none'}")
    return named[0]


def with_feature(network: fx.GraphModule, reader: fx.Node, quantized: bool = False) -> fx.GraphModule:
    """The same network, over the same tensors, that returns (outputs, what the layer `reader` reads in a
    tuple of one).

    `quantized`: behind the quantizer of that input, else before it.
    """
    feature = reader.all_input_nodes[0]
    if not quantized and feature.op == "call_module":
        module = network.get_submodule(str(feature.target))
        feature = feature.all_input_nodes[0] if isinstance(module, Quantizer) else feature
    return with_values(network, [feature.name])


@torch.no_grad()
def quantize_feature(
    network: fx.GraphModule, reader: fx.Node, spec: ImageSpec, pixels_NCHW: Tensor, bits: int, search: bool
) -> None:
    """Put a quantizer behind what the layer `reader` of a captured teacher reads, for all that read it, in
    place, set on the images."""
    path, observer = "feature_quantizer", Observer(f"{reader.target}.input")
    network.add_submodule(path, observer)
    source = reader.all_input_nodes[0]
    with network.graph.inserting_after(source):
        quantized = network.graph.call_module(path, (source,))
    source.replace_all_uses_with(quantized, delete_user_cb=lambda user: user is not quantized)
    network.recompile()
    device = next(network.parameters()).device
    for norm in norm_batches(spec, pixels_NCHW, device):
        network(norm)
    network.set_submodule(path, IntervalActivation(observer.histogram(), bits, search).to(device))
