"""Bits chosen for each image by a small controller (DQNet), trained with the network against the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, fx

from zsq.contract import Facts, Fit, FittedStudent
from zsq.core.errors import MismatchError, OptionError
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.fitting.calibration import norm_batches, observe
from zsq.fitting.choosing import (
    Chooser,
    WidthCosts,
    change_within_budget,
    scores_of,
    shares_on,
    with_cost,
)
from zsq.fitting.learned_steps import learned_activation, learned_weight, with_learned_steps
from zsq.fitting.trained import TrainedStudent
from zsq.fitting.training import Course, TrainingOptions
from zsq.placement.choices import (
    CONTROLLER,
    CONTROLLER_BITS,
    SUFFIXES,
    Dynamic,
    branched,
    decided,
    dynamic_layers,
    separate,
    tap_of,
)
from zsq.placement.macs import Counting
from zsq.placement.sites import Placement
from zsq.widths import FLOAT_BITS, MOST_BITS, Bits

COSTS = "width_costs"
# One bit less is the narrowest affine grid.
LEAST_ASKED = 3


class DQNetOptions(TrainingOptions):
    """`cost_weight` is that of the bit operations above those of the asked bits, as a share of these.
    `choice_temperature` is of the softmax whose gradient the choices have."""

    step_learning_rate: float = Field(1e-2, gt=0)
    # Chosen on training images: fifty times as much drives the controller to one choice for all images.
    controller_learning_rate: float = Field(1e-4, gt=0)
    temperature: float = Field(4.0, gt=0)
    choice_temperature: float = Field(1.0, gt=0)
    cost_weight: float = Field(1.0, ge=0)


class DQNet(TrainedStudent):
    """Layers behind the first resolution run at one bit less, at the asked bits, or at one bit more, weights
    and inputs alike, as a controller says that reads the features before them."""

    name = "dqnet"
    facts = Facts(
        paper="Instance-Aware Dynamic Neural Network Quantization, Liu et al. 2022 (CVPR)",
        own_rows="its layers have several widths each",
        summary="bits chosen for each image by a small controller, at the cost of the asked bits on average",
        deviations=(
            "learned steps (LSQ), one per width, as in one of the paper's tables, instead of DoReFa, which "
            "starts at chance where batch norm keeps the teacher's statistics",
            "the limit is on bit operations, the controller's among them, not on the mean of the bits",
            "after the training the scores are moved until the images of the fit keep within the limit",
            "the largest score decides once trained, where the public code keeps its noise",
            "the controller has 8 bits and a ReLU; convolutional shortcuts choose too",
            "KL to the teacher at T = 4, without labels; of other tasks, the task's own loss",
            "Adam 5e-4, for steps 1e-2 of their size, for the controller 1e-4, with cosine, 160 times 128 "
            "images, batch norm frozen, instead of SGD 0.1 over 110 epochs",
        ),
    )
    options_class: ClassVar[type[Options]] = DQNetOptions
    options: DQNetOptions
    form = "chosen"
    takes_tasks = True
    step_work = 2.6
    refused_passes = dict.fromkeys(("prune", "prune-global"), "its weights have several widths")

    def __init__(self, options: DQNetOptions, runtime: Runtime) -> None:
        """Prepare the training.

        Raises:
            OptionError: it is asked to prune.
        """
        if options.sparsity:
            raise OptionError(f"sparsity with student {self.name}", "sparsity=0")
        super().__init__(options, runtime)
        self._dynamic: Dynamic | None = None

    def check_bits(self, bits: Bits, first_last: int | None) -> None:
        """Refuse 2 bits, of which there is no bit less, and bits of weights or activations alone, too.

        Raises:
            OptionError: also for that.
        """
        super().check_bits(bits, first_last)
        alone = (bits.weights == FLOAT_BITS) != (bits.activations == FLOAT_BITS)
        if alone or min(bits.weights, bits.activations) < LEAST_ASKED:
            raise OptionError(
                f"{bits.uniform} with student {self.name}", "W3A3 to W8A8, weights and inputs alike"
            )

    def run(self, fit: Fit) -> FittedStudent:
        """Train, then let the largest score decide, within the limit."""
        self._dynamic = None
        fitted = super().run(fit)
        if self._dynamic is None:
            return fitted
        assert isinstance(fitted.network, fx.GraphModule)
        self._finish(fitted.network, self._dynamic, fit)
        named = replace(fitted, shares=dict.fromkeys(self._dynamic.names(), 1.0))
        return replace(named, shares=shares_on(named, fit.pixels_NCHW))

    def places(self, fit: Fit) -> Placement:
        """See `TrainedStudent.places`; with a controller, and layers of several widths.

        Raises:
            MismatchError: features that no controller can read, or no layer behind them.
        """
        placement = super().places(fit)
        bits = fit.bits
        if bits.weights == FLOAT_BITS:
            return placement
        tap = tap_of(placement.network, len(fit.teacher.spec.shape) + 1)
        layers = [] if tap is None else dynamic_layers(placement, tap, bits)
        if tap is None or not layers:
            found = f"teacher {fit.teacher.name} has no layers of {bits.uniform} behind features on a map"
            raise MismatchError(found, "a convolutional network", "use student lsq-kd")
        shifts = [shift for shift in SUFFIXES if max(bits.weights, bits.activations) + shift <= MOST_BITS]
        chooser = Chooser(self.options.batch, len(layers), len(shifts), self.options.choice_temperature)
        generator = torch_generator(fit.seed, 0, "dqnet controller")
        self._dynamic = branched(placement, tap, layers, shifts, chooser, generator)
        return self._dynamic.placement

    def put_quantizers(self, placement: Placement, fit: Fit) -> None:
        """First steps, of each width its own: of activations on the images, of weights from the weights."""
        found = observe(placement, fit.teacher.spec, fit.pixels_NCHW, self.runtime.device)
        for site in placement.of_kind("weight"):
            placement.put(site, learned_weight(placement.weight(site), site.bits))
        for site, histogram in found.items():
            placement.put(site, learned_activation(histogram, site.bits))
        if self._dynamic is not None:
            placement.network.add_module(COSTS, self._costs(self._dynamic, fit))

    @torch.no_grad()
    def _costs(self, dynamic: Dynamic, fit: Fit) -> WidthCosts:
        network, bits = dynamic.placement.network, fit.bits
        counting = Counting(network)
        counting.run(fit.teacher.spec.pixels_to_norm(fit.pixels_NCHW[:1].to(self.runtime.device)))
        macs = {str(node.target): count for node, count in counting.macs.items()}
        widths = [(bits.weights + shift) * (bits.activations + shift) for shift in dynamic.shifts]
        costs = torch.tensor([[macs[layer] * width for width in widths] for layer in dynamic.layers])
        asked = sum(macs[layer] for layer in dynamic.layers) * bits.weights * bits.activations
        own = sum(macs[name] for name in CONTROLLER) * CONTROLLER_BITS**2
        return WidthCosts(costs / asked, own / asked)

    def course(self, placement: Placement, fit: Fit) -> Course:
        """As every student, with a learning rate for each step and for the controller, and noise."""
        network, options = placement.network, self.options
        course = super().course(placement, fit)
        if self._dynamic is not None:
            chooser = next(part for part in network.modules() if isinstance(part, Chooser))
            generator = torch_generator(fit.seed, 0, "dqnet noise")
            course = replace(
                course,
                taught=with_cost(network, COSTS),
                before_step=lambda step: chooser.draw(generator),
            )
        course = with_learned_steps(course, placement, options.step_learning_rate, options.optimizer)
        if options.optimizer == "sgd" or self._dynamic is None:
            return course
        return replace(course, groups=self._with_controller(network, course.groups))

    def _with_controller(
        self, network: fx.GraphModule, groups: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """`groups`, the first of which has given the controller's parameters to one of their own."""
        linears = [network.get_submodule(name) for name in CONTROLLER]
        own = [parameter for linear in linears for parameter in (linear.weight, linear.bias)]
        others = [p for p in groups[0]["params"] if all(p is not each for each in own)]
        controller = {"params": own, "lr": self.options.controller_learning_rate}
        return [{"params": others}, controller, *groups[1:]]

    def total_loss(self, student: Any, teacher: Any) -> Tensor:
        """That of the outputs, and of what the choices cost beyond the asked bits on average."""
        outputs, cost_N = student
        over = (cost_N.mean() - 1).clamp(min=0)
        return super().total_loss(outputs, teacher) + self.options.cost_weight * over

    @torch.no_grad()
    def _finish(self, network: fx.GraphModule, dynamic: Dynamic, fit: Fit) -> None:
        """Masks by the scores alone, which are moved as far as the limit needs."""
        costs = network.get_submodule(COSTS)
        assert isinstance(costs, WidthCosts)
        network.delete_submodule(COSTS)
        separate(dynamic)
        decided(network)
        batches = norm_batches(fit.teacher.spec, fit.pixels_NCHW, self.runtime.device)
        shifts = torch.tensor(dynamic.shifts, dtype=torch.float32)
        change = change_within_budget(scores_of(network, batches), costs.cpu(), shifts)
        bias = network.get_parameter(f"{CONTROLLER[1]}.bias")
        bias.add_(change.repeat(len(dynamic.layers)).to(bias.device))
