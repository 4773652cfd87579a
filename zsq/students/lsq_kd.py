"""Quantization-aware training: learned steps (LSQ) and distillation from the teacher, without labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from zsq.contract import Bits, Facts, FittedStudent, Options, Silent, StepLog, Student, Teacher
from zsq.errors import MismatchError
from zsq.quantizers.grids import FakeQuantizer, Kind, integer_range
from zsq.quantizers.observers import Histogram
from zsq.quantizers.placement import FLOAT_BITS, Placement, Site, place
from zsq.quantizers.ranges import lp_symmetric
from zsq.runtime import Runtime
from zsq.seeding import torch_generator
from zsq.students.calibration import check_images, observe
from zsq.students.losses import distillation
from zsq.students.views import shift_and_flip

LOG_EVERY = 20


class LSQKDOptions(Options):
    """Schedule of LSQ with distillation; `iterations` are optimiser steps.

    The published LSQ schedule: optimizer=sgd learning_rate=0.01 weight_decay=1e-4 temperature=1 ce_weight=1
    batch=256 batch_norm=train, over 90 epochs.
    """

    iterations: int = Field(160, ge=0)
    batch: int = Field(128, ge=1)
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    # Of a step, in units of its own size, for Adam: its updates have the size of the learning rate whatever
    # the gradient, and 1e-3 is half a step of an 8-bit weight grid.
    step_learning_rate: float = Field(1e-2, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    temperature: float = Field(4.0, gt=0)
    ce_weight: float = Field(0.0, ge=0)
    batch_norm: Literal["frozen", "train"] = "frozen"
    shift: int = Field(3, ge=0)
    flip: bool = True


class LSQKD(Student):
    """Weights symmetric per output channel; activations per tensor, unsigned where none is below zero."""

    name = "lsq-kd"
    facts = Facts(
        paper="LSQ, Esser et al. 2020 (arXiv:1902.08153), with distillation as in Hinton et al. 2015",
        summary="learned steps, trained against the teacher's logits",
        deviations=(
            "a step per output channel of a weight instead of one per layer",
            "steps start at the least squared error on the images instead of 2 mean|x| / sqrt(Qp)",
            "Adam 1e-3, for steps 1e-2 of their size, with cosine, 160 times 128 images, instead of SGD 0.01 "
            "over 90 epochs",
            "KL to the teacher at T = 4 alone, without labels",
            "batch norm keeps the teacher's statistics; only its affine part trains",
        ),
    )
    options_class: ClassVar[type[Options]] = LSQKDOptions
    options: LSQKDOptions

    def __init__(self, options: LSQKDOptions, runtime: Runtime) -> None:
        """What is compiled takes a network of the same structure and this fit's tensors, so that the next fit
        finds it compiled."""
        super().__init__(options, runtime)
        self._templates: dict[Hashable, nn.Module] = {}
        self._logits_of = runtime.compiled(self._logits)
        self._loss_of = runtime.compiled(self._loss)

    def fit(
        self,
        teacher: Teacher,
        pixels_NCHW: Tensor,
        bits: Bits,
        *,
        first_last: int | None = None,
        seed: int = 0,
        log: StepLog | None = None,
    ) -> FittedStudent:
        """See `Student.fit`; W32A32 is the float network, untrained.

        Raises:
            MismatchError: also for a teacher of embeddings, which has no classes to distil.
        """
        check_images(teacher, pixels_NCHW)
        if teacher.task != "classify":
            raise MismatchError(f"teacher {teacher.name} embeds", "a classifier", "use student ptq")
        placement = place(teacher.network, bits, first_last=first_last, fold=False)
        network = placement.network
        network.to(self.runtime.device).to(memory_format=torch.channels_last)
        self._put_quantizers(placement, observe(placement, teacher.spec, pixels_NCHW, self.runtime.device))
        if bits != Bits(FLOAT_BITS, FLOAT_BITS):
            template = self._template(network, (teacher.network, bits, placement.table()))
            self._train(network, template, teacher, pixels_NCHW, seed, log or Silent())
        network.eval().requires_grad_(False)
        return FittedStudent(self.name, bits, first_last, network, teacher.spec, placement.table())

    def _put_quantizers(self, placement: Placement, histograms: dict[Site, Histogram]) -> None:
        for site in placement.of_kind("weight"):
            weight = placement.weight(site).detach()
            grid = integer_range(site.bits, signed=True)
            # Searched on the levels that have a counterpart below zero: at 2 bits the least error over -2..1
            # clips a sixth of the weights, which then get no gradient.
            step = lp_symmetric(weight.flatten(1), -grid[1], grid[1])
            placement.put(site, _learned(step.view(-1, *[1] * (weight.dim() - 1)), grid, "weight"))
        for site, histogram in histograms.items():
            values, counts = histogram.occupied()
            grid = integer_range(site.bits, signed=histogram.low < 0)
            step = lp_symmetric(values[None], *grid, counts).squeeze(0)
            placement.put(site, _learned(step, grid, "activation").to(self.runtime.device))

    def _train(
        self,
        network: nn.Module,
        template: nn.Module,
        teacher: Teacher,
        pixels_NCHW: Tensor,
        seed: int,
        log: StepLog,
    ) -> None:
        options, device = self.options, self.runtime.device
        for module in (template, network):
            self._set_modes(module)
        tensors = dict(network.named_parameters()) | dict(network.named_buffers())
        steps = [module.step for module in network.modules() if isinstance(module, FakeQuantizer)]
        optimizer = self._optimizer(network, steps)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(options.iterations, 1))
        batches = _batches(len(pixels_NCHW), options.batch, options.iterations, seed)
        views = torch_generator(seed, 0, "lsq-kd views")
        for iteration, batch in enumerate(batches, start=1):
            standard = teacher.spec.pixels_to_standard(pixels_NCHW[batch].to(device))
            norm = teacher.spec.standard_to_norm(shift_and_flip(standard, options.shift, options.flip, views))
            torch.compiler.cudagraph_mark_step_begin()
            with torch.no_grad():
                teacher_NK = self._logits_of(teacher.network, {}, norm).clone()
            optimizer.zero_grad()
            loss = self._loss_of(template, tensors, norm, teacher_NK)
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                # A step that fell below zero would stay there: its gradient ends at the guard.
                for step in steps:
                    step.abs_()
            if iteration % LOG_EVERY == 0 or iteration == len(batches):
                log.advance(len(batch) * ((iteration - 1) % LOG_EVERY + 1), loss=loss.item())

    def _logits(self, network: nn.Module, tensors: dict[str, Tensor], norm_NCHW: Tensor) -> Tensor:
        with self.runtime.autocast():
            images = norm_NCHW.contiguous(memory_format=torch.channels_last)
            return torch.func.functional_call(network, tensors, (images,)).float()

    def _loss(
        self, network: nn.Module, tensors: dict[str, Tensor], norm_NCHW: Tensor, teacher_NK: Tensor
    ) -> Tensor:
        student_NK = self._logits(network, tensors, norm_NCHW)
        loss = distillation(student_NK, teacher_NK, self.options.temperature)
        if self.options.ce_weight:
            loss = loss + self.options.ce_weight * F.cross_entropy(student_NK, teacher_NK.argmax(dim=1))
        return loss

    def _template(self, network: nn.Module, structure: Hashable) -> nn.Module:
        if structure not in self._templates:
            self._templates[structure] = copy.deepcopy(network)
        return self._templates[structure]

    def _set_modes(self, network: nn.Module) -> None:
        network.eval().requires_grad_(True)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(self.options.batch_norm == "train")

    def _optimizer(self, network: nn.Module, steps: list[Tensor]) -> torch.optim.Optimizer:
        options = self.options
        shared: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
        if options.optimizer == "sgd":
            return torch.optim.SGD(network.parameters(), momentum=options.momentum, **shared)
        others = [p for p in network.parameters() if all(p is not step for step in steps)]
        rates = [options.step_learning_rate * step.mean().item() for step in steps]
        groups: list[dict[str, Any]] = [{"params": others}]
        groups += [{"params": [step], "lr": rate} for step, rate in zip(steps, rates, strict=True)]
        return torch.optim.Adam(groups, **shared)


def _learned(step: Tensor, grid: tuple[int, int], kind: Kind) -> FakeQuantizer:
    return FakeQuantizer(step, torch.zeros_like(step), *grid, kind, learned=True)


def _batches(num_images: int, batch: int, steps: int, seed: int) -> Tensor:
    """(steps, batch) image indices: one shuffled pass after another, whatever the number of images."""
    generator = torch_generator(seed, 0, "lsq-kd batches")
    num_passes = max(1, math.ceil(steps * batch / num_images))
    passes = [torch.randperm(num_images, generator=generator) for _ in range(num_passes)]
    return torch.cat(passes)[: steps * batch].view(steps, batch)
