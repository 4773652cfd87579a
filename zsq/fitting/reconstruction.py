"""The reconstruction engine: fit the quantizers of one unit so that its output stays the float network's.

It knows neither bits nor images nor how a network is cut into units. It gets a unit as a network, the unit's
features, and a phase: data that say what is trained, on which inputs and by which losses.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, fx, nn

from zsq.contract import StepLog
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.fitting.calibration import BATCH
from zsq.fitting.training import LOG_EVERY, shuffled_batches, tensors_of
from zsq.fitting.unit_losses import UnitBatch, UnitLoss
from zsq.fitting.unitdata import UnitData
from zsq.placement.subgraphs import structure
from zsq.quantizers.grids import Quantizer, Role, keep_positive
from zsq.quantizers.rounding import Dropped, SoftRounding, mixed, random_bytes
from zsq.quantizers.thresholds import LearnedBorders, temperature_at
from zsq.widths import Kind

Inputs = Literal["float", "quantized", "mixed"]

# h(V) of this is 1 exactly, of its negative 0.
DECIDED = 20.0
INPUT_NOISE = "input noise"
# In front of the names of the tensors of what follows a unit.
TAIL = "beyond: "


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of one role under Adam; `cosine`: the learning rate falls to 0 over the phase."""

    role: Role
    learning_rate: float
    cosine: bool = False

    def rate(self, progress: float) -> float:
        """The learning rate at `progress` in 0..1."""
        return self.learning_rate * (0.5 + 0.5 * math.cos(math.pi * progress) if self.cosine else 1.0)


@dataclass(frozen=True)
class Annealing:
    """Schedule of the rounding penalty: none for the share `warm_up` of the phase, then beta falls
    linearly."""

    start: float
    end: float
    warm_up: float

    def at(self, progress: float) -> tuple[float, float]:
        """(beta, strength) at `progress` in 0..1."""
        if progress < self.warm_up:
            return self.start, 0.0
        done = (progress - self.warm_up) / max(1 - self.warm_up, 1e-9)
        return self.start + (self.end - self.start) * min(done, 1.0), 1.0


@dataclass(frozen=True)
class Phase:
    """One course of training, on each unit in turn.

    Attributes:
        kinds: quantizers that are put in place when a unit's turn comes.
        inputs: what enters a unit: values of the float network, of the student with its earlier units
            quantized, or of both, mixed element by element.
        keep: probability with which a mixed element, and an activation inside the unit, is quantized.
        weighted: whether squared errors are weighted by the importance of each output.
    """

    name: str
    kinds: tuple[Kind, ...]
    groups: tuple[ParameterGroup, ...]
    inputs: Inputs
    losses: tuple[UnitLoss, ...]
    iterations: int
    annealing: Annealing
    keep: float = 1.0
    weighted: bool = False

    @property
    def effective_inputs(self) -> Inputs:
        """`inputs`; but a mixture that keeps all elements or none is one of both kinds."""
        if self.inputs == "mixed" and self.keep in (0.0, 1.0):
            return "quantized" if self.keep else "float"
        return self.inputs


class Engine:
    """Optimises units. A step is compiled once per structure of a unit and phase, whatever its tensors."""

    def __init__(self, runtime: Runtime, batch: int) -> None:
        """`batch` images per iteration."""
        self.runtime, self.batch = runtime, batch
        self._steps: dict[Hashable, Callable[..., tuple[Tensor, Tensor]]] = {}

    def run(
        self, network: fx.GraphModule, phase: Phase, data: UnitData, seed: int, stream: str, log: StepLog
    ) -> None:
        """Train, in place, the parameters of `network` that require a gradient and whose role the phase
        trains.

        Args:
            network: a unit by `unit_network`, activations wrapped in `Dropped` where the phase keeps fewer
                than all.
            stream: name of this unit's random draws.
            log: advances in images of the unit, with the loss and the unit's error.
        """
        roles = parameters_by_role(network)
        groups = [(group, roles[group.role]) for group in phase.groups if roles[group.role]]
        if not groups:
            return
        optimizer = torch.optim.Adam([{"params": found, "lr": group.rate(0)} for group, found in groups])
        steps = roles["weight step"] + roles["activation step"]
        tensors = tensors_of(network)
        beyond = {} if data.beyond is None else _named(TAIL, tensors_of(data.beyond.tail))
        step = self._step(network, phase, data)
        noise = torch_generator(seed, 0, f"{stream} noise")
        batches = shuffled_batches(data.num_images, self.batch, phase.iterations, seed, stream)
        for iteration, index in enumerate(batches):
            progress = iteration / phase.iterations
            for (group, _), settings in zip(groups, optimizer.param_groups, strict=True):
                settings["lr"] = group.rate(progress)
            bytes_of = self._noise(network, phase, data, len(index), noise)
            given = tensors | bytes_of | beyond | self._temperatures(network, progress)
            annealed = torch.tensor(phase.annealing.at(progress), device=self.runtime.device)
            self.runtime.begin_step()
            optimizer.zero_grad()
            loss, error = step(given, annealed, *data.rows(index))
            loss.backward()
            optimizer.step()
            keep_positive(steps)
            if (iteration + 1) % LOG_EVERY == 0 or iteration + 1 == phase.iterations:
                log.advance(self.batch * (iteration % LOG_EVERY + 1), loss=loss.item(), error=error.item())

    def _noise(
        self,
        network: fx.GraphModule,
        phase: Phase,
        data: UnitData,
        batch: int,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Random bytes for what is mixed: the input, and the input of every quantizer in the unit."""
        if phase.keep in (0.0, 1.0):
            return {}
        mixes = phase.inputs == "mixed" and data.quantized is not None
        shapes = {INPUT_NOISE: data.full.shape} if mixes else {}
        drawn = {name: random_bytes((batch, *shape), generator) for name, shape in shapes.items()}
        # What goes on beyond the unit is a second batch in it.
        inside = batch if data.beyond is None else 2 * batch
        for name, module in network.named_modules():
            if isinstance(module, Dropped):
                drawn[f"{name}.noise"] = random_bytes((inside, *module.shape), generator)
        return {name: self.runtime.sent(bytes_) for name, bytes_ in drawn.items()}

    def _temperatures(self, network: fx.GraphModule, progress: float) -> dict[str, Tensor]:
        """That of each quantizer with learned borders."""
        temperature = torch.tensor(temperature_at(progress), device=self.runtime.device)
        return {
            f"{name}.temperature": temperature
            for name, module in network.named_modules()
            if isinstance(module, LearnedBorders)
        }

    def _step(
        self, network: fx.GraphModule, phase: Phase, data: UnitData
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        tail = None if data.beyond is None else data.beyond.tail
        beyond = None if tail is None else structure(tail)
        key = (structure(network), phase.name, data.full.shape, data.channels, data.quantized is None, beyond)
        if key not in self._steps:
            # All tensors of a tail are given, and every unit has another one.
            empty = None if tail is None else copy.deepcopy(tail).to("meta")
            made = _make_step(copy.deepcopy(network), phase, data.channels, self.runtime, empty)
            self._steps[key] = self.runtime.compiled(made)
        return self._steps[key]

    @torch.no_grad()
    def error(self, network: fx.GraphModule, phase: Phase, data: UnitData) -> float:
        """The first loss over all images with rounding decided and nothing dropped."""
        tensors = tensors_of(network)
        decided = {
            f"{name}.variables": torch.where(module.variables >= 0, DECIDED, -DECIDED)
            for name, module in network.named_modules()
            if isinstance(module, SoftRounding)
        }
        inputs: Inputs = "float" if phase.inputs == "float" else "quantized"
        plain = replace(phase, inputs=inputs, keep=1.0, losses=phase.losses[:1])
        data = replace(data, beyond=None)
        step = _make_step(network, plain, data.channels, Runtime())
        total, annealed = 0.0, torch.zeros(2, device=self.runtime.device)
        for index in torch.arange(data.num_images).split(BATCH):
            total += len(index) * step(tensors | decided, annealed, *data.rows(index))[1].item()
        return total / data.num_images


def _make_step(
    template: fx.GraphModule,
    phase: Phase,
    channels: int,
    runtime: Runtime,
    tail: fx.GraphModule | None = None,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """(tensors, (beta, strength), float input, student's input, target, importance) -> (loss, first loss);
    with a `tail` also images and the teacher's outputs. What goes through the tail is the unit's output of
    the student's input, unmixed."""
    names = [name for name, _ in template.named_parameters() if name.endswith(".variables")]
    inputs = phase.effective_inputs

    def step(
        tensors: dict[str, Tensor],
        annealed: Tensor,
        full: Tensor,
        quantized: Tensor | None,
        target: Tensor,
        importance: Tensor | None,
        images: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        x = own_input = full if quantized is None or inputs == "float" else quantized
        if quantized is not None and inputs == "mixed":
            x = mixed(quantized, full, tensors[INPUT_NOISE], phase.keep)
        own = {n: tensor for n, tensor in tensors.items() if n != INPUT_NOISE and not n.startswith(TAIL)}
        prediction = None
        with runtime.autocast():
            if tail is None:
                output = torch.func.functional_call(template, own, (x,)).float()
            else:
                both = torch.func.functional_call(template, own, (torch.cat([x, own_input]),))
                output, beyond = both.split(len(x))
                frozen = {n.removeprefix(TAIL): t for n, t in tensors.items() if n.startswith(TAIL)}
                prediction = torch.func.functional_call(tail, frozen, (images, beyond)).float()
                output = output.float()
        variables = tuple(tensors[name] for name in names)
        annealing = (annealed[0], annealed[1])
        batch = UnitBatch(output, target, importance, variables, *annealing, channels, prediction, reference)
        values = [loss.weight * loss.value(batch) for loss in phase.losses]
        return torch.stack(values).sum(), values[0].detach()

    return step


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def parameters_by_role(network: nn.Module) -> dict[Role, list[Tensor]]:
    """Trainable parameters of the quantizers in `network`; none of a role that no quantizer has."""
    found: dict[Role, list[Tensor]] = defaultdict(list)
    for module in network.modules():
        if isinstance(module, Quantizer):
            for role, parameter in module.roles().items():
                found[role] += [parameter] if parameter.requires_grad else []
    return found
