"""Train the teacher that ships as `embedded:digits-vit`: python benchmarks/train_digits_vit.py [--out FILE].

A few minutes on one core. The last iterate is kept, the validation split was the only guide to the constants,
and the test split is measured once, at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from train_digits import built, fit, report_and_save

from zsq.core.seeding import torch_generator
from zsq.teacher.digits_vit import WEIGHTS_PATH, DigitsViT

EPOCHS = 200
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1


def main(
    out: Annotated[Path, typer.Option(help="File to write.")] = WEIGHTS_PATH,
    seed: Annotated[int, typer.Option(help="Of the initial weights, order and distortions.")] = 0,
) -> None:
    """Train, report and save."""
    network = built(DigitsViT, seed)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    fit(network, optimizer, EPOCHS, torch_generator(seed, 0, "train vit"), LABEL_SMOOTHING)
    report_and_save(network, out)


if __name__ == "__main__":
    typer.run(main)
