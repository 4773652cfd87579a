"""Train the teacher that ships as `embedded:digits`: python benchmarks/train_digits.py [--out FILE].

About half a minute on one core. The last iterate is kept, the validation split was the only guide to the
constants, and the test split is measured once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save_file
from torch import Tensor, nn

from zsq.core.seeding import torch_generator
from zsq.teacher.digits import DIGITS_SPEC, WEIGHTS_PATH, DigitsNet, Split, load_digits_images

SPLITS: tuple[Split, ...] = ("train", "val", "test")
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
# Shift in pixels, rotation in radians and relative size: what keeps a digit the same digit.
MAX_SHIFT, MAX_ROTATION, MAX_SCALE = 3.0, 0.15, 0.1

Network = TypeVar("Network", bound=nn.Module)


def distorted(norm_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted, rotated and scaled by its own random amount; the border value continues outside."""
    draw_N4 = torch.rand(len(norm_NCHW), 4, generator=generator) * 2 - 1
    angle_N, scale_N = draw_N4[:, 0] * MAX_ROTATION, 1 + draw_N4[:, 1] * MAX_SCALE
    cos_N, sin_N = angle_N.cos() * scale_N, angle_N.sin() * scale_N
    shift_N2 = draw_N4[:, 2:] * (2 * MAX_SHIFT / norm_NCHW.shape[-1])
    rows = [torch.stack([cos_N, -sin_N, shift_N2[:, 0]], 1), torch.stack([sin_N, cos_N, shift_N2[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(norm_NCHW.shape), align_corners=False)
    return F.grid_sample(norm_NCHW, grid, padding_mode="border", align_corners=False)


def built(network_class: Callable[[], Network], seed: int) -> Network:
    """The network with the initial weights of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network_class()


def fit(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    generator: torch.Generator,
    smoothing: float = 0.0,
) -> None:
    """Train on distorted images of the train split under a one-cycle cosine, up to the optimizer's rate."""
    pixels_NCHW, labels_N = load_digits_images("train")
    norm_NCHW = DIGITS_SPEC.pixels_to_norm(pixels_NCHW)
    steps_per_epoch = len(norm_NCHW) // BATCH
    rate = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps_per_epoch)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(norm_NCHW), generator=generator)
        for batch in order[: steps_per_epoch * BATCH].split(BATCH):
            logits_NK = network(distorted(norm_NCHW[batch], generator))
            loss = F.cross_entropy(logits_NK, labels_N[batch], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def measure_statistics(network: torch.nn.Module, norm_NCHW: Tensor) -> None:
    """Set the BN statistics to those of the undistorted images, all in one batch.

    The moving averages describe distorted images under changing weights; methods that invert BN need the
    statistics of the data itself.
    """
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(norm_NCHW)
    network.eval()


def accuracy(network: torch.nn.Module, split: Split) -> float:
    """Percent of the split that the network in eval mode names correctly."""
    pixels_NCHW, labels_N = load_digits_images(split)
    with torch.no_grad():
        predicted_N = network(DIGITS_SPEC.pixels_to_norm(pixels_NCHW)).argmax(1)
    return 100 * (predicted_N == labels_N).double().mean().item()


def report_and_save(network: nn.Module, out: Path) -> None:
    """Say the accuracy of each split, and write the weights."""
    network.eval()
    for split in SPLITS:
        typer.echo(f"{split} accuracy {accuracy(network, split):.2f}")
    save_file(network.state_dict(), out)
    typer.echo(f"wrote {out} ({out.stat().st_size} bytes)")


def main(
    out: Annotated[Path, typer.Option(help="File to write.")] = WEIGHTS_PATH,
    seed: Annotated[int, typer.Option(help="Of the initial weights, order and distortions.")] = 0,
) -> None:
    """Train, report and save."""
    network = built(DigitsNet, seed)
    optimizer = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    fit(network, optimizer, EPOCHS, torch_generator(seed, 0, "train"))
    measure_statistics(network, DIGITS_SPEC.pixels_to_norm(load_digits_images("train")[0]))
    report_and_save(network, out)


if __name__ == "__main__":
    typer.run(main)
