"""The float network that a student stands for, inside the student's own graph, with every quantizer of each
layer to be switched on and off."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from zsq.contract import FittedStudent, Teacher
from zsq.core.errors import MismatchError
from zsq.engine.executed import blank
from zsq.passes import Fitted, prepare, sees_images
from zsq.quantizers.grids import Quantizer
from zsq.saved.stored_graph import move_to
from zsq.tasks.nesting import Outputs, named_tensors, plain, shapes
from zsq.tasks.sqnr import SignalToNoise

REFIT = "inspect a student that leaves layers as they are, such as ptq, fitted on the same images"
# Folding and equalization round differently; another network than the teacher is far below.
SAME_DB = 60.0
# A grid of two levels leaves more of a weight than that.
LEAST_WEIGHT_DB = 0.0
# Training moves the scales of a normalisation by less than that, moving them into the next layer by more.
LEAST_SCALE_DB = 20.0
NORMS_WITHOUT_STATISTICS = (nn.LayerNorm, nn.GroupNorm)


class Switch(nn.Module):
    """The identity, or `quantizer` where it is on."""

    def __init__(self, quantizer: nn.Module) -> None:
        """Off."""
        super().__init__()
        self.quantizer, self.on = quantizer, False

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return self.quantizer(x) if self.on else x


class _Fixed(nn.Module):
    """A weight as a student has it, whatever comes in."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())

    def forward(self, weight: Tensor) -> Tensor:
        return self.weight


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer, or a product of two activations: the nodes that call it, the quantizer of its weight if it has
    one, and the paths of those of its inputs."""

    name: str
    nodes: tuple[str, ...]
    path: str | None
    inputs: tuple[str, ...]

    @property
    def has_both(self) -> bool:
        """Whether it has quantizers of both kinds."""
        return self.path is not None and bool(self.inputs)


class Twin:
    """`student` is the fitted network, `network` the same graph over the teacher's tensors; both on `device`.

    `layers` are in the order of execution.
    """

    def __init__(self, fitted: FittedStudent, teacher: Teacher, device: str) -> None:
        """`teacher` is the one that the student was fitted to, on `device`.

        Raises:
            MismatchError: another teacher, or a student whose layers do not stand for the teacher's.
        """
        assert isinstance(fitted.network, fx.GraphModule)
        self.student = move_to(copy.deepcopy(fitted.network), device).eval()
        floats, reference = _float_networks(fitted, teacher)
        self.network = _over(self.student, reference, fitted.student).to(device)
        self.layers = quantized_layers(self.student)
        self._switches: dict[str, list[Switch]] = {}
        self._biases: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
        for layer in self.layers:
            self._prepare(layer)
        black = blank(teacher.network, teacher.spec)
        image = torch.linspace(-1, 1, black.numel(), device=black.device, dtype=black.dtype).view_as(black)
        self._check(floats, teacher.spec.standard_to_norm(image), fitted.student)

    def _prepare(self, layer: QuantizedLayer) -> None:
        for path in layer.inputs:
            if path not in self._switches:
                switch = Switch(self.student.get_submodule(path))
                self.network.set_submodule(path, switch)
                self._switches[path] = [switch]
        if layer.path is None:
            return
        own, other = self.student.get_submodule(layer.path), self.network.get_submodule(layer.path)
        switch = Switch(_Fixed(own.quantized_weight))  # type: ignore[arg-type]
        other.weight_quantizer = switch
        self._switches[f"{layer.path}.weight"] = [switch]
        biases = getattr(own, "bias", None), getattr(other, "bias", None)
        if isinstance(biases[0], Tensor) and isinstance(biases[1], Tensor):
            self._biases[layer.path] = other, biases[0].detach(), biases[1].detach()

    @torch.no_grad()
    def _check(self, floats: nn.Module, image: Tensor, student: str) -> None:
        """One image through both float networks, and each weight beside the teacher's."""
        same = SignalToNoise()
        own, teachers = plain(self.network(image)), plain(floats(image))
        if _sizes(own) != _sizes(teachers):
            found = f"student {student} gives {shapes(own)}, and the teacher {shapes(teachers)}"
            raise MismatchError(found, "the same outputs", "take the card that it was fitted with")
        same.add(own, teachers)
        if same.metrics()["sqnr"] < SAME_DB:
            found = f"student {student} computes something else than its teacher also without quantizers"
            raise MismatchError(found, "the same layers in both", REFIT)
        for layer in self.layers:
            if layer.path is not None:
                fixed = self._switches[f"{layer.path}.weight"][0].quantizer(image)
                self._check_near(f"{layer.path}.weight", fixed, LEAST_WEIGHT_DB, student)
        own = self.student.state_dict()
        for path, module in self.network.named_modules():
            # What reads statistics may have been adapted; what does not scales the layers behind it.
            if isinstance(module, NORMS_WITHOUT_STATISTICS) and f"{path}.weight" in own:
                self._check_near(f"{path}.weight", own[f"{path}.weight"], LEAST_SCALE_DB, student)

    def _check_near(self, name: str, own: Tensor, least_db: float, student: str) -> None:
        noise = SignalToNoise()
        noise.add(own, self.network.get_parameter(name))
        if noise.metrics()["sqnr"] < least_db:
            found = f"'{name}' of student {student} is not near the teacher's: it moves scales between layers"
            raise MismatchError(found, "each layer as in the teacher", REFIT)

    @contextmanager
    def quantized(self, layer: QuantizedLayer, *, weights: bool, activations: bool) -> Iterator[None]:
        """`network` with this layer's weights (and the bias as the student has it) or inputs quantized."""
        paths = [*(layer.inputs if activations else ())]
        if weights and layer.path is not None:
            paths.append(f"{layer.path}.weight")
        bias = self._biases.get(layer.path or "") if weights else None
        switches = [switch for path in paths for switch in self._switches[path]]
        try:
            for switch in switches:
                switch.on = True
            if bias is not None:
                bias[0].bias = nn.Parameter(bias[1], requires_grad=False)
            yield
        finally:
            for switch in switches:
                switch.on = False
            if bias is not None:
                bias[0].bias = nn.Parameter(bias[2], requires_grad=False)


def _float_networks(fitted: FittedStudent, teacher: Teacher) -> tuple[nn.Module, fx.GraphModule]:
    """What the passes before the fit make of the teacher, and the same with layers as the student's."""
    passes: Sequence[str] = () if fitted.made is None else fitted.made.passes
    if sees_images(passes):
        found = f"a student behind {', '.join(passes)}, which changed the teacher by the images of the fit"
        raise MismatchError(found, "passes that do not look at images", REFIT)
    assert isinstance(fitted.network, fx.GraphModule)
    prepared = prepare(passes, teacher.network, teacher.example())
    return prepared.network, Fitted(fitted.network, prepared, ()).reference()


def _sizes(outputs: Outputs) -> list[torch.Size]:
    return [tensor.shape for _, tensor in named_tensors(outputs)]


def _over(student: fx.GraphModule, reference: fx.GraphModule, name: str) -> fx.GraphModule:
    """The student's graph without quantizers over the tensors of `reference`."""
    twin = copy.deepcopy(student)
    for path, module in list(twin.named_modules()):
        if isinstance(module, Quantizer):
            twin.set_submodule(path, nn.Identity())
    tensors = reference.state_dict()
    for key, own in twin.state_dict().items():
        if key not in tensors or tensors[key].shape != own.shape:
            found = f"'{key}' {tuple(own.shape)} of student {name}, which the teacher does not have"
            raise MismatchError(found, "the tensors of the teacher that it was fitted to", REFIT)
    twin.load_state_dict({key: tensors[key] for key in twin.state_dict()})
    return twin.eval().requires_grad_(False)


def quantized_layers(network: fx.GraphModule) -> tuple[QuantizedLayer, ...]:
    """Every layer and product of a fitted network that has a quantizer."""
    found: dict[str, QuantizedLayer] = {}
    modules = dict(network.named_modules())
    for node in network.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        path = str(node.target) if isinstance(getattr(module, "weight_quantizer", None), Quantizer) else None
        inputs = tuple(
            str(other.target)
            for other in node.all_input_nodes
            if other.op == "call_module" and isinstance(modules.get(str(other.target)), Quantizer)
        )
        if path is None and not inputs:
            continue
        name = path or (str(node.target) if module is not None else inputs[0].rpartition(".")[0])
        name = name or node.name
        earlier = found.get(name)
        if earlier is not None:
            inputs = tuple(dict.fromkeys((*earlier.inputs, *inputs)))
        nodes = (*(earlier.nodes if earlier else ()), node.name)
        found[name] = QuantizedLayer(name, nodes, path, inputs)
    return tuple(found.values())
