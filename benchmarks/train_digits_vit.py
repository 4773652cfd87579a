"""Train the teacher that ships as `embedded:digits-vit`: python benchmarks/train_digits_vit.py [--out FILE].

A few minutes on one core. The last iterate is kept, the validation split was the only guide to the constants,
and the test split is measured once, at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save_file
from torch import Tensor
from train_digits import accuracy, distorted

from zsq.core.seeding import torch_generator
from zsq.teacher.digits import DIGITS_SPEC, load_digits_images
from zsq.teacher.digits_vit import WEIGHTS_PATH, DigitsViT

EPOCHS = 200
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1


def fit(network: DigitsViT, norm_NCHW: Tensor, labels_N: Tensor, generator: torch.Generator) -> None:
    """AdamW under a one-cycle cosine over EPOCHS."""
    steps_per_epoch = len(norm_NCHW) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, EPOCHS * steps_per_epoch)
    for _ in range(EPOCHS):
        order = torch.randperm(len(norm_NCHW), generator=generator)
        for batch in order[: steps_per_epoch * BATCH].split(BATCH):
            logits_NK = network(distorted(norm_NCHW[batch], generator))
            loss = F.cross_entropy(logits_NK, labels_N[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main(
    out: Annotated[Path, typer.Option(help="File to write.")] = WEIGHTS_PATH,
    seed: Annotated[int, typer.Option(help="Of the initial weights, order and distortions.")] = 0,
) -> None:
    """Train, report and save."""
    pixels_NCHW, labels_N = load_digits_images("train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitsViT()
    fit(network, DIGITS_SPEC.pixels_to_norm(pixels_NCHW), labels_N, torch_generator(seed, 0, "train vit"))
    for split in ("train", "val", "test"):
        typer.echo(f"{split} accuracy {accuracy(network, split):.2f}")
    save_file(network.state_dict(), out)
    typer.echo(f"wrote {out} ({out.stat().st_size} bytes)")


if __name__ == "__main__":
    typer.run(main)
