"""Students that are fitted unit by unit: what AdaRound, BRECQ, QDrop and GENIE-M share around the engine."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from zsq.contract import Bits, FittedStudent, Options, Silent, StepLog, Student, Teacher
from zsq.imagespec import ImageSpec
from zsq.quantizers.grids import FakeQuantizer, integer_range
from zsq.quantizers.observers import Histogram
from zsq.quantizers.placement import Placement, Site, place
from zsq.quantizers.policies import quantize_residuals, with_second_input
from zsq.quantizers.ranges import lp_affine
from zsq.quantizers.rounding import Dropped, SoftRounding
from zsq.quantizers.subgraphs import unit_network
from zsq.quantizers.units import Granularity, Unit, partition
from zsq.runtime import Runtime
from zsq.students.calibration import check_images, observe
from zsq.students.reconstruction import Annealing, Engine, Phase
from zsq.students.unitdata import Images, gather

SMALL_INPUT = 64
SMALL_INPUT_ITERATIONS = 2000


class UnitwiseOptions(Options):
    """What all of them have; `iterations` are optimiser steps per unit.

    `learning_rate` is that of the rounding at the published iterations. With fewer, `rounding_rate` is as
    many times larger: between the ends of h, V moves by 5, and 1e-3 a step is 2 in 2,000 steps.
    """

    iterations: int = Field(20_000, ge=0)
    batch: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    rounding_weight: float = Field(0.01, ge=0)
    beta_start: float = Field(20.0, gt=0)
    beta_end: float = Field(2.0, gt=0)
    warm_up: float = Field(0.2, ge=0, lt=1)
    # Where --first-last does not say; None: as --bits.
    first_last: int | None = 8
    # Bits of the inputs of the layers after the first ones; None: as all others.
    second_input: int | None = Field(None, ge=2, le=8)
    residual_stream: Literal["float", "quantized"] = "float"

    @property
    def rounding_rate(self) -> float:
        """Adam's learning rate for V."""
        published = type(self).model_fields["iterations"].default
        return self.learning_rate * max(1.0, published / max(self.iterations, 1))

    @classmethod
    def ours(cls, spec: ImageSpec) -> dict[str, Any]:
        """A tenth of the published iterations for networks that take small images."""
        small = max(spec.input_size or spec.size) <= SMALL_INPUT
        return {"iterations": SMALL_INPUT_ITERATIONS} if small else {}


@dataclass
class _Fit:
    """One fit under way."""

    images: Images
    placement: Placement
    full: fx.GraphModule
    histograms: dict[Site, Histogram]
    units: tuple[Unit, ...]
    seed: int
    log: StepLog = field(default_factory=Silent)

    @property
    def network(self) -> fx.GraphModule:
        """The student as it is so far."""
        return self.placement.network


class Share:
    """A StepLog that counts images of a unit as parts of an image of the whole network."""

    def __init__(self, log: StepLog, num_units: int) -> None:
        """`num_units` of them make a whole."""
        self.log, self.num_units, self.rest = log, num_units, 0

    def advance(self, amount: int, **values: float) -> None:
        """See `StepLog`."""
        whole, self.rest = divmod(self.rest + amount, self.num_units)
        self.log.advance(whole, **values)


class UnitwiseStudent(Student):
    """A student whose quantizers are learned by reconstructing the float network's output unit by unit."""

    options: UnitwiseOptions
    granularity: ClassVar[Granularity] = "block"
    folds_batch_norm: ClassVar[bool] = True
    clips_each_end: ClassVar[bool] = False

    def __init__(self, options: UnitwiseOptions, runtime: Runtime) -> None:
        """The engine keeps compiled steps from one fit to the next."""
        super().__init__(options, runtime)
        self._engine = Engine(runtime, options.batch)

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """What is learned, in which order."""

    def fixes(self, unit: Unit, index: int) -> bool:
        """Whether a unit is rounded to nearest instead of reconstructed."""
        return False

    def activation_quantizer(self, histogram: Histogram, bits: int) -> FakeQuantizer:
        """Per tensor, affine, with the least L2.4 error; the step may be learned, the zero point stays."""
        values, counts = histogram.occupied()
        step, zero = lp_affine(values[None], bits, counts, each_end=True)
        grid = integer_range(bits, signed=False)
        return FakeQuantizer(step.squeeze(0), zero.squeeze(0), *grid, "activation", learned=True)

    def weight_grid(self, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Step and zero point per output channel with the least L2.4 error, to broadcast against `weight`."""
        shape = (-1, *[1] * (weight.dim() - 1))
        step, zero = lp_affine(weight.flatten(1), bits, each_end=self.clips_each_end)
        return step.view(shape), zero.view(shape)

    @property
    def annealing(self) -> Annealing:
        """As the options say."""
        return Annealing(self.options.beta_start, self.options.beta_end, self.options.warm_up)

    def images_trained(self, teacher: Teacher, num_images: int) -> float:
        """See `Student.images_trained`: the units of one iteration each make one pass together."""
        return sum(phase.iterations for phase in self.phases()) * self.options.batch

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
        """See `Student.fit`; `first_last` None is the option's."""
        check_images(teacher, pixels_NCHW)
        first_last = self.options.first_last if first_last is None else first_last
        placement = self._placed(teacher, bits, first_last)
        network = placement.network.to(self.runtime.device).to(memory_format=torch.channels_last)
        network.requires_grad_(False)
        images = Images(teacher.spec, pixels_NCHW, self.runtime)
        _, norm = next(images.batches())
        fit = _Fit(
            images,
            placement,
            full=copy.deepcopy(network),
            histograms=observe(placement, teacher.spec, pixels_NCHW, self.runtime.device),
            units=partition(placement, self.granularity, norm[:1]),
            seed=seed,
        )
        for phase in self.phases():
            learned = [self._learns(phase, unit, index) for index, unit in enumerate(fit.units)]
            fit.log = Share(log or Silent(), sum(learned))
            for index, unit in enumerate(fit.units):
                self._reconstruct(fit, phase, unit, index)
        network.eval().requires_grad_(False)
        return FittedStudent(
            self.name, bits, first_last, network, teacher.spec, placement.table(), teacher.task
        )

    def _placed(self, teacher: Teacher, bits: Bits, first_last: int | None) -> Placement:
        placement = place(teacher.network, bits, first_last=first_last, fold=self.folds_batch_norm)
        if self.options.second_input is not None:
            placement = with_second_input(placement, self.options.second_input)
        if self.options.residual_stream == "quantized":
            quantize_residuals(placement)
        return placement

    def _reconstruct(self, fit: _Fit, phase: Phase, unit: Unit, index: int) -> None:
        sites = _sites(phase, unit)
        self._put_quantizers(fit, sites)
        if self._learns(phase, unit, index):
            data = gather(
                fit.full,
                fit.network,
                unit,
                fit.images,
                sees_student=phase.effective_inputs != "float",
                weighted=phase.weighted,
            )
            self._soften(fit, sites, phase)
            network = self._unit_network(fit, phase, unit)
            before = self._engine.error(network, phase, data)
            self._engine.run(network, phase, data, fit.seed, f"{self.name} {phase.name} {index}", fit.log)
            after = self._engine.error(network, phase, data)
            fit.log.advance(0, unit=index, before=before, after=after)
        self._harden(fit, sites)

    def _learns(self, phase: Phase, unit: Unit, index: int) -> bool:
        return bool(_sites(phase, unit)) and phase.iterations > 0 and not self.fixes(unit, index)

    def _put_quantizers(self, fit: _Fit, sites: list[Site]) -> None:
        """Rounding to nearest: what a unit would be without learning."""
        for site in sites:
            if site.kind == "weight":
                weight = fit.placement.weight(site).detach()
                step, zero = self.weight_grid(weight, site.bits)
                quantizer = FakeQuantizer(step, zero, *integer_range(site.bits, signed=False), "weight")
            else:
                quantizer = self.activation_quantizer(fit.histograms[site], site.bits)
            fit.placement.put(site, quantizer.to(self.runtime.device).requires_grad_(False))

    def _soften(self, fit: _Fit, sites: list[Site], phase: Phase) -> None:
        """Learned rounding in place of nearest, and gradients for what the phase trains."""
        roles = {group.role for group in phase.groups}
        for site in sites:
            quantizer = fit.placement.get(site)
            assert isinstance(quantizer, FakeQuantizer)
            if site.kind == "activation":
                quantizer.requires_grad_("activation step" in roles)
                continue
            weight = fit.placement.weight(site)
            soft = SoftRounding(weight, quantizer.step, quantizer.zero_point, quantizer.lo, quantizer.hi)
            soft.variables.requires_grad_("rounding" in roles)
            soft.step.requires_grad_("weight step" in roles)
            fit.placement.put(site, soft)

    @torch.no_grad()
    def _harden(self, fit: _Fit, sites: list[Site]) -> None:
        for site in sites:
            quantizer = fit.placement.get(site)
            quantizer.requires_grad_(False)
            if isinstance(quantizer, SoftRounding):
                weight, grid = quantizer.hardened()
                fit.placement.weight(site).copy_(weight)
                fit.placement.put(site, grid)

    def _unit_network(self, fit: _Fit, phase: Phase, unit: Unit) -> fx.GraphModule:
        paths = {site.path for site in fit.placement.of_kind("activation")}

        def wrapped(node: fx.Node, module: nn.Module) -> nn.Module:
            # Identities stand where no quantizer has been put yet.
            if str(node.target) not in paths or phase.keep == 1 or not isinstance(module, FakeQuantizer):
                return module
            return Dropped(module, phase.keep, tuple(node.meta["tensor_meta"].shape[1:]))

        return unit_network(fit.network, unit, wrapped)


def _sites(phase: Phase, unit: Unit) -> list[Site]:
    return [site for site in unit.sites if site.kind in phase.kinds]
