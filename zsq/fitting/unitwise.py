"""Students that are fitted unit by unit: what AdaRound, BRECQ, QDrop and GENIE-M share around the engine."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from zsq.contract import Fit, FittedStudent, StepLog, Student, Teacher
from zsq.core.imagespec import SMALL_IMAGE, ImageSpec
from zsq.core.layout import channels_last
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.fitting.calibration import observe, searched_activation, searched_weight
from zsq.fitting.features import Features
from zsq.fitting.frontier import Frontier, Images
from zsq.fitting.reconstruction import Annealing, Engine, Inputs, ParameterGroup, Phase
from zsq.fitting.unit_losses import rounding_loss, unit_error
from zsq.fitting.unitdata import UnitData, gather
from zsq.graph import capture
from zsq.placement.by_image import view_by_image
from zsq.placement.policies import quantize_residuals, with_second_input
from zsq.placement.sites import Placement, Site, place
from zsq.placement.subgraphs import unit_network
from zsq.placement.units import Granularity, Unit, by_image, partition
from zsq.quantizers.grids import FakeQuantizer, Quantizer
from zsq.quantizers.observers import Histogram
from zsq.quantizers.rounding import Dropped, SoftRounding
from zsq.widths import MOST_BITS, Bits, GridWidth, WidthOrFloat

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
    first_last: WidthOrFloat | None = MOST_BITS
    # Bits of the inputs of the layers after the first ones; None: as all others.
    second_input: GridWidth | None = None
    residual_stream: Literal["float", "quantized"] = "float"

    @property
    def rounding_rate(self) -> float:
        """Adam's learning rate for V."""
        published = type(self).model_fields["iterations"].default
        return self.learning_rate * max(1.0, published / max(self.iterations, 1))

    @classmethod
    def ours(cls, spec: ImageSpec) -> dict[str, Any]:
        """A tenth of the published iterations for networks that take small images."""
        small = max(spec.network_size) <= SMALL_IMAGE
        return {"iterations": SMALL_INPUT_ITERATIONS} if small else {}


@dataclass
class Fitting:
    """One fit under way; `full` is the float network, of the same graph as the student. `frontiers` are those
    of both in this phase."""

    teacher: Teacher
    images: Images
    placement: Placement
    full: fx.GraphModule
    histograms: dict[Site, Histogram]
    units: tuple[Unit, ...]
    frontiers: tuple[Frontier, Frontier]
    seed: int
    log: StepLog
    masks: Mapping[str, Tensor]

    @property
    def network(self) -> fx.GraphModule:
        """The student as it is so far."""
        return self.placement.network

    @cached_property
    def outputs(self) -> Features:
        """Those of the float network for all images."""
        (output,) = (node.all_input_nodes[0] for node in self.full.graph.nodes if node.op == "output")
        (outputs,) = Frontier(self.full, self.images).features([output.name])
        return outputs

    @cached_property
    def unfolded(self) -> fx.GraphModule:
        """The teacher's network with its batch norms, frozen, on the images' device."""
        captured = capture(self.teacher.network, self.teacher.example())
        return captured.to(self.images.runtime.device).requires_grad_(False)

    def between_units(self) -> list[Site]:
        """The sites that belong to no unit: of products outside of blocks."""
        inside = {site for unit in self.units for site in unit.sites}
        return [site for site in self.placement.sites if site not in inside]


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
    def phases(self, bits: Bits) -> tuple[Phase, ...]:
        """What is learned at these widths, in which order."""

    def single_phase(
        self, name: str, groups: tuple[ParameterGroup, ...], inputs: Inputs, keep: float = 1.0
    ) -> tuple[Phase, ...]:
        """Weights and activations in one phase, with the unit's error and the rounding penalty."""
        options = self.options
        return (
            Phase(
                name=name,
                kinds=("weight", "activation"),
                groups=groups,
                inputs=inputs,
                losses=(unit_error(), rounding_loss(options.rounding_weight)),
                iterations=options.iterations,
                annealing=self.annealing,
                keep=keep,
            ),
        )

    def fixes(self, unit: Unit, index: int) -> bool:
        """Whether a unit is rounded to nearest instead of reconstructed."""
        return False

    def activation_quantizer(self, histogram: Histogram, bits: int) -> FakeQuantizer:
        """Per tensor, affine, with the least L2.4 error; the step may be learned, the zero point stays."""
        return searched_activation(histogram, bits, learned=True)

    @property
    def annealing(self) -> Annealing:
        """As the options say."""
        return Annealing(self.options.beta_start, self.options.beta_end, self.options.warm_up)

    def images_trained(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """See `Student.images_trained`: one iteration of every unit is one of the whole network."""
        learning = (phase for phase in self.phases(bits) if bits.quantize(*phase.kinds))
        return sum(phase.iterations for phase in learning) * self.options.batch

    def run(self, fit: Fit) -> FittedStudent:
        """Put first grids, then reconstruct one unit after the other, in each phase."""
        teacher, device = fit.teacher, self.runtime.device
        placement = self._placed(fit)
        network = channels_last(placement.network.to(device))
        network.requires_grad_(False)
        images = Images(teacher.spec, fit.pixels_NCHW, self.runtime)
        _, norm = next(images.batches())
        view_by_image(placement, norm[:1])
        full = copy.deepcopy(network)
        state = Fitting(
            teacher,
            images,
            placement,
            full=full,
            histograms=observe(placement, teacher.spec, fit.pixels_NCHW, device),
            units=partition(placement, self.granularity, norm[:1]),
            frontiers=(Frontier(full, images), Frontier(network, images)),
            seed=fit.seed,
            log=fit.log,
            masks={name: mask.to(device) for name, mask in fit.masks.items()},
        )
        self._put_quantizers(state, state.between_units())
        for phase in self.phases(fit.bits):
            learned = [self._learns(phase, unit, index) for index, unit in enumerate(state.units)]
            state.log = Share(fit.log, sum(learned))
            # The phase before has changed the student.
            state.frontiers = Frontier(state.full, images), Frontier(network, images)
            for index, unit in enumerate(state.units):
                self._reconstruct(state, phase, unit, index)
        network.eval().requires_grad_(False)
        return self.result(fit, network, placement.table())

    def histograms(self, state: Fitting, unit: Unit | None, sites: list[Site]) -> Mapping[Site, Histogram]:
        """What the first grids of these activation sites come from; no `unit`: they are outside of all."""
        return state.histograms

    def softened(self, state: Fitting, site: Site, quantizer: FakeQuantizer) -> Quantizer:
        """What is learned in place of an activation's first grid; the weights of the unit are on theirs."""
        return quantizer

    def settled(self, state: Fitting, site: Site, quantizer: Quantizer) -> Quantizer:
        """What stands at an activation in the end, in place of what was learned or never was."""
        return quantizer

    def prepared(self, state: Fitting, unit: Unit, data: UnitData) -> UnitData:
        """What the unit is reconstructed from, where that is more than its values in both networks."""
        return data

    def _placed(self, fit: Fit) -> Placement:
        teacher = fit.teacher
        placement = place(
            teacher.network,
            teacher.example(),
            fit.bits,
            first_last=fit.first_last,
            fold=self.folds_batch_norm,
        )
        if self.options.second_input is not None:
            placement = with_second_input(placement, self.options.second_input, fit.bits.rows)
        if self.options.residual_stream == "quantized":
            quantize_residuals(placement)
        return placement

    def _reconstruct(self, state: Fitting, phase: Phase, unit: Unit, index: int) -> None:
        sites = _sites(phase, unit)
        self._put_quantizers(state, sites, unit)
        if self._learns(phase, unit, index):
            self._soften(state, sites, phase)
            data = gather(
                *state.frontiers,
                unit,
                state.units[index + 1 :],
                sees_student=phase.effective_inputs != "float",
                weighted=phase.weighted,
            )
            data = self.prepared(state, unit, data)
            network = self._unit_network(state, phase, unit)
            before = self._engine.error(network, phase, data)
            self._engine.run(network, phase, data, state.seed, f"{self.name} {phase.name} {index}", state.log)
            after = self._engine.error(network, phase, data)
            state.log.advance(0, unit=index, before=before, after=after)
        self._harden(state, sites)

    def _learns(self, phase: Phase, unit: Unit, index: int) -> bool:
        learns = bool(_sites(phase, unit)) and phase.iterations > 0 and unit.by_image
        return learns and not self.fixes(unit, index)

    def _put_quantizers(self, state: Fitting, sites: list[Site], unit: Unit | None = None) -> None:
        """Rounding to nearest: what a unit would be without learning. Weights first."""
        for site in (site for site in sites if site.kind == "weight"):
            weight = state.placement.weight(site)
            quantizer = searched_weight(weight, site.bits, each_end=self.clips_each_end)
            state.placement.put(site, quantizer.to(self.runtime.device).requires_grad_(False))
        activations = [site for site in sites if site.kind == "activation"]
        seen = self.histograms(state, unit, activations)
        for site in activations:
            quantizer = self.activation_quantizer(seen[site], site.bits)
            state.placement.put(site, quantizer.to(self.runtime.device).requires_grad_(False))

    def _soften(self, state: Fitting, sites: list[Site], phase: Phase) -> None:
        """Learned rounding in place of nearest, and gradients for what the phase trains."""
        roles = {group.role for group in phase.groups}
        for site in sites:
            quantizer = state.placement.get(site)
            assert isinstance(quantizer, FakeQuantizer)
            if site.kind == "activation":
                learned = self.softened(state, site, quantizer).requires_grad_(False)
                for role, parameter in learned.roles().items():
                    parameter.requires_grad_(role in roles)
                state.placement.put(site, learned)
                continue
            weight = state.placement.weight(site)
            grid = (quantizer.step, quantizer.zero_point, quantizer.lo, quantizer.hi)
            soft = SoftRounding(weight, *grid, mask=state.masks.get(site.name))
            soft.variables.requires_grad_("rounding" in roles)
            soft.step.requires_grad_("weight step" in roles)
            state.placement.put(site, soft)

    @torch.no_grad()
    def _harden(self, state: Fitting, sites: list[Site]) -> None:
        for site in sites:
            quantizer = state.placement.get(site)
            quantizer.requires_grad_(False)
            if site.kind == "activation":
                assert isinstance(quantizer, Quantizer)
                state.placement.put(site, self.settled(state, site, quantizer))
            elif isinstance(quantizer, SoftRounding):
                weight, grid = quantizer.hardened()
                state.placement.weight(site).copy_(weight)
                state.placement.put(site, grid)

    def _unit_network(self, state: Fitting, phase: Phase, unit: Unit) -> fx.GraphModule:
        paths = {site.path for site in state.placement.of_kind("activation")}
        nodes = [node for node in state.network.graph.nodes if node.name in unit.nodes]

        def wrapped(node: fx.Node, module: nn.Module) -> nn.Module:
            # Identities stand where no quantizer has been put yet.
            if str(node.target) not in paths or phase.keep == 1 or not isinstance(module, Quantizer):
                return module
            calls = [call for call in nodes if call.target == node.target]
            shapes = {tuple(call.meta["tensor_meta"].shape[1:]) for call in calls}
            # What is dropped is drawn per image, and for one shape.
            drops = len(shapes) == 1 and all(map(by_image, calls))
            return Dropped(module, phase.keep, *shapes) if drops else module

        return unit_network(state.network, unit, wrapped).to(self.runtime.device)


def _sites(phase: Phase, unit: Unit) -> list[Site]:
    return [site for site in unit.sites if site.kind in phase.kinds]
