"""Statistics without batch norm, against the true ones: `python benchmarks/moments.py`.

The CIFAR-10 ResNet-20 of ZSQ_DATA with its batch norms folded is a network without batch norm whose true
statistics are known: behind each convolution, the bias is the mean and the scale the standard deviation.
Beside them stand the moments that follow from the weights, and those of 512 images of each kind. Keeps all
in benchmarks/results/moments.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import typer
from common import Results, Threads, load_resnet20, training_images
from torch import Tensor, nn

from zsq.contract import Teacher
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.engine.moments import Moments, Rules, SummedGaussians
from zsq.engine.statistics import TappedTeacher
from zsq.engine.textures import correlated, dead_leaves, power_law
from zsq.engine.weights import estimated

COUNT = 512
# Of the 19 convolutions; all of them give the mean.
SHOWN = (0, 4, 9, 14, 18)


def main(threads: Threads = 1) -> None:
    """Compare everything anew: it takes a minute."""
    teacher, runtime = load_resnet20(), Runtime.resolve(threads=threads)
    truth = true_moments(teacher)
    rows = []
    with runtime.in_force():
        for name, rules in (("gzsq", SummedGaussians()), ("gzsq_moment", Rules())):
            network, found = estimated(teacher, rules, name)
            rows.append(compared(name, [*found.values()][: len(truth)], truth))
        names = [*found][: len(truth)]
        for name, images in sources(teacher).items():
            low, high = teacher.spec.valid_box()
            seen = measured(network.float(), names, teacher.spec.standard_to_norm(images.clamp(low, high)))
            rows.append(compared(name, seen, truth))
    results = Results("moments", "python benchmarks/moments.py")
    results.write(rows=rows)
    for row in rows:
        typer.echo(row)


def true_moments(teacher: Teacher) -> list[Moments]:
    """Of the output of each batch norm, in order of execution."""
    layers = [teacher.network.get_submodule(name) for name in TappedTeacher(teacher).names]
    found = []
    for layer in layers:
        assert isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None
        var = layer.weight.square() * layer.running_var / (layer.running_var + layer.eps)
        found.append(Moments(layer.bias, var))
    return found


def sources(teacher: Teacher) -> dict[str, Tensor]:
    """Images (512, C, H, W) of each kind, in standard space."""
    spec = teacher.spec
    shape, real = (COUNT, *spec.shape), training_images(spec).pixels
    chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(77))[:COUNT]

    def leaves(texture: float) -> Callable[[torch.Generator], Tensor]:
        return lambda rng: torch.stack(
            [dead_leaves(spec.shape, 60, (0.5, 2.5), texture, rng) for _ in range(COUNT)]
        )

    kinds: dict[str, Callable[[torch.Generator], Tensor]] = {
        "noise": lambda rng: torch.randn(*shape, generator=rng),
        "noise, colours correlated": lambda rng: correlated(torch.randn(*shape, generator=rng)),
        "spectrum 1/f": lambda rng: power_law(shape, (1.0, 1.0), rng),
        "spectra 1/f^0.5 to 1/f^2.5": lambda rng: power_law(shape, (0.5, 2.5), rng),
        "dead leaves": leaves(0.0),
        "leaves": leaves(0.7),
    }
    drawn = {name: kind(torch_generator(0, 0, name)) for name, kind in kinds.items()}
    return drawn | {"real": spec.pixels_to_standard(real[chosen])}


@torch.no_grad()
def measured(network: nn.Module, names: Sequence[str], norm_NCHW: Tensor) -> list[Moments]:
    """Mean and variance per channel behind each of these layers."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    network(norm_NCHW)
    for hook in hooks:
        hook.remove()
    return [Moments(seen[name].mean((0, 2, 3)), seen[name].var((0, 2, 3))) for name in names]


def compared(name: str, found: Sequence[Moments], truth: Sequence[Moments]) -> dict[str, object]:
    """Root mean squares over channels of (m - M) / S and log(s / S): of some layers, and the mean of all."""
    means, spreads = [], []
    for ours, true in zip(found, truth, strict=True):
        std = true.var.sqrt()
        means.append(((ours.mean - true.mean) / std).square().mean().sqrt().item())
        spreads.append((ours.var.sqrt() / std).log().square().mean().sqrt().item())
    return {
        "statistics": name,
        "mean_error": round(sum(means) / len(means), 3),
        "log_std_error": round(sum(spreads) / len(spreads), 3),
        "mean_errors": [round(means[layer], 3) for layer in SHOWN],
        "log_std_errors": [round(spreads[layer], 3) for layer in SHOWN],
        "layers": list(SHOWN),
    }


if __name__ == "__main__":
    typer.run(main)
