"""Methods that train one generator network against the teacher and take all images from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from zsq.contract import Generator, StepLog, SyntheticBatch, Teacher
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options, follows_batch, scales_with_iterations
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.engine.cache import read_tensors, write_tensors
from zsq.engine.conditional import ConditionalNetwork, NoiseNetwork
from zsq.engine.estimate import training_bytes
from zsq.engine.invert import Inversion, Stage, warn_of_idle_terms
from zsq.engine.latent import allocated
from zsq.engine.objectives import Term, bn_alignment, cross_entropy
from zsq.engine.parameterise import ParameterGroup, Parameterisation
from zsq.engine.schedules import Betas, exponential
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.targets import class_count
from zsq.plan import Group


class AmortisedOptions(Options):
    """Constants of GDFQ's generator and of its training, which its successors kept.

    `iterations` are steps of that training, 400 epochs of 200; `training_batch` images each.
    """

    iterations: int = Field(80_000, ge=1)
    training_batch: int = follows_batch(200, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    betas: Betas = (0.5, 0.999)
    decay: float = Field(0.1, gt=0, le=1)
    decay_every: int = scales_with_iterations(20_000, ge=1)
    ce_weight: float = Field(1.0, ge=0)
    bn_weight: float = Field(0.1, ge=0)
    latent: int = Field(100, ge=1)
    conditional_bn: bool = False
    bn_epsilon: float = Field(0.8, gt=0)

    @classmethod
    def published(cls, spec: ImageSpec) -> dict[str, Any]:
        """The ImageNet scripts' constants for large images."""
        return {} if spec.is_small else {"training_batch": 16, "conditional_bn": True}


class FreshInputs(Parameterisation):
    """A network's weights; its random inputs, and with them the targets, are drawn anew for every step."""

    def __init__(self, network: ConditionalNetwork, device: str, options: AmortisedOptions) -> None:
        """`network` is on `device`; batches, rates and schedule are those of `options`."""
        super().__init__()
        self.network, self.device, self.batch = network, device, options.training_batch
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        schedule = exponential(options.decay, options.decay_every)
        self._group = ParameterGroup(trained, options.learning_rate, options.betas, schedule)
        self.inputs: tuple[Tensor, ...] = ()

    def forward(self) -> Tensor:
        """The images of the latest inputs."""
        return self.network(*self.inputs)

    def reset(self, generator: torch.Generator) -> None:
        """Fresh weights, and inputs."""
        self.network.reset(generator)
        self.redraw(generator, None)

    def redraw(self, generator: torch.Generator, targets_NK: Tensor | None) -> Tensor | None:
        """New inputs and their targets."""
        self.inputs = tuple(drawn.to(self.device) for drawn in self.network.draw(self.batch, generator))
        return self.inputs[0]

    def groups(self) -> Sequence[ParameterGroup]:
        """One group: the weights."""
        return [self._group]


class AmortisedMethod(Generator):
    """A conditional generator network, trained once per run; a subclass says which, and may add terms."""

    options_class: ClassVar[type[Options]] = AmortisedOptions
    network_class: ClassVar[type[NoiseNetwork]] = NoiseNetwork

    def __init__(self, teacher: Teacher, options: Any, runtime: Runtime) -> None:
        """Keep the parts and build the network."""
        super().__init__(teacher, options, runtime)
        self.network = self.build(class_count(teacher, self.name))
        self.losses: dict[str, float] = {}

    @classmethod
    def default_batch(cls, spec: ImageSpec) -> int:
        """The published training batch."""
        return cls.options_class.resolve(cls.name, spec, {}).model_dump()["training_batch"]

    @classmethod
    def teacher_passes(cls, options: Any, count: int) -> int:
        """The training's, however many images are then made."""
        return options.iterations * options.training_batch

    def build(self, num_classes: int) -> ConditionalNetwork:
        """The network on the runtime's device; training draws its weights."""
        o, spec = self.options, self.teacher.spec
        return allocated(
            lambda: self.network_class(spec, num_classes, o.latent, o.bn_epsilon, o.conditional_bn),
            self.runtime.device,
        )

    def network_bytes(self, batch: int) -> int:
        """Of the generator network."""
        inputs = self.network.draw(2, torch_generator(0, 0, "network bytes"))
        return training_bytes(self.network, [drawn.to(self.runtime.device) for drawn in inputs], batch)

    def terms(self) -> Sequence[Term]:
        """GDFQ's: classes, and BN statistics of the batch as mean and biased variance."""
        alignment = Alignment("batch", moment="var", over_layers="mean")
        return [
            Term("ce", self.options.ce_weight, cross_entropy),
            Term("bn", self.options.bn_weight, bn_alignment(alignment)),
        ]

    def training(self, inputs: FreshInputs) -> Inversion:
        """The training loop; a subclass with terms that look at the tapped teacher makes its own."""
        tapped = TappedTeacher(self.teacher, self.name)
        return Inversion(tapped, inputs, self.terms(), [Stage(self.options.iterations)], self.runtime)

    def prepare(self, seed: int, cache: Path, log: StepLog) -> None:
        """Train the network, or take it from `cache` where an earlier call with this seed left it whole."""
        path = cache / f"{self.name}-{seed}.safetensors"
        stored = read_tensors(path)
        if stored is None:
            self.losses = self._train(seed, log)
            losses = {f"losses.{name}": torch.tensor(value) for name, value in self.losses.items()}
            write_tensors(path, self.network.state_dict() | losses)
        else:
            names = [name for name in stored if name.startswith("losses.")]
            self.losses = {name.removeprefix("losses."): stored.pop(name).item() for name in names}
            self.network.load_state_dict(stored)
            log.advance(self.teacher_passes(self.options, 0), **self.losses)

    def _train(self, seed: int, log: StepLog) -> dict[str, float]:
        inputs = FreshInputs(self.network, self.runtime.device, self.options)
        _, history = self.training(inputs).run(torch_generator(seed, 0, f"{self.name} training"), None, log)
        warn_of_idle_terms(self.name, history)
        return history.last()

    def synthesize(self, group: Group, log: StepLog) -> SyntheticBatch:
        """Images of the trained network and the classes asked of them."""
        rng = group.generator("synthesis")
        made = [self._sample(batch, rng) for batch in group.batch_sizes]
        images, targets = (torch.cat(parts) for parts in zip(*made, strict=True))
        return SyntheticBatch(images, targets, self.losses)

    @torch.no_grad()
    def _sample(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """At least a training batch at once, since the network normalises over the batch."""
        images, targets = self.sample(max(count, self.options.training_batch), rng)
        return images[:count].cpu(), targets[:count].cpu()

    def sample(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One batch: images (count, C, H, W) and their class probabilities (count, K), on the device."""
        inputs = [drawn.to(self.runtime.device) for drawn in self.network.draw(count, rng)]
        return self.network(*inputs), inputs[0]
