"""Train the teacher that ships as `embedded:digits-detector`: python benchmarks/train_digits_detector.py
[--out FILE].

A few minutes on two cores. Canvases of the train split's digits, none of which is in the shipped source; the
last iterate is kept, and the test canvases are measured once, at the end.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save_file
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, sigmoid_focal_loss
from train_digits import built, measure_statistics

from zsq.core.seeding import torch_generator
from zsq.tasks.average_precision import average_precision, match
from zsq.teacher.digits import Split
from zsq.teacher.digits_canvases import NUM_CANVASES, load_digits_canvases, place_digits
from zsq.teacher.digits_detector import (
    DETECTOR_SPEC,
    NUM_CLASSES,
    STRIDE,
    WEIGHTS_PATH,
    DigitsDetector,
    cell_centres,
    decode,
    dense,
)

NUM_IMAGES = 8192
EPOCHS = 16
BATCH = 64
LEARNING_RATE = 0.004
WEIGHT_DECAY = 5e-3
# Cells this near to a box's centre learn it, as in FCOS: 1.5 strides.
RADIUS = 1.5 * STRIDE
# Share of cells with a digit at the start, for the bias of the classes.
PRIOR = 0.01


def cell_targets(boxes_B4: Tensor, labels_B: Tensor, centres_A2: Tensor) -> tuple[Tensor, Tensor]:
    """The class (A,) of each cell, -1 for none, and the box (A, 4) it learns: of the boxes that hold its
    centre near their own, the smallest."""
    centre_B2 = (boxes_B4[:, :2] + boxes_B4[:, 2:]) / 2
    inside_AB = ((centres_A2[:, None] > boxes_B4[:, :2]) & (centres_A2[:, None] < boxes_B4[:, 2:])).all(-1)
    near_AB = ((centres_A2[:, None] - centre_B2).abs() < RADIUS).all(-1)
    area_B = (boxes_B4[:, 2:] - boxes_B4[:, :2]).prod(-1)
    smallest_A, box_A = torch.where(inside_AB & near_AB, area_B, torch.inf).min(1)
    return torch.where(smallest_A < torch.inf, labels_B[box_A], -1), boxes_B4[box_A]


def centreness(centres_A2: Tensor, boxes_NA4: Tensor) -> Tensor:
    """FCOS's target (N, A): 1 at the middle of the box, falling to 0 at its border."""
    before, after = centres_A2 - boxes_NA4[..., :2], boxes_NA4[..., 2:] - centres_A2
    ratio = torch.minimum(before, after) / torch.maximum(before, after)
    return ratio.clamp_min(0).prod(-1).sqrt()


def loss(outputs: dict[str, Tensor], classes_NA: Tensor, boxes_NA4: Tensor, centres_A2: Tensor) -> Tensor:
    """FCOS: focal loss of the classes, CIoU of the boxes weighted by centre-ness, and centre-ness itself."""
    positive_NA = classes_NA >= 0
    wanted_NAK = F.one_hot(classes_NA.clamp_min(0), NUM_CLASSES) * positive_NA[..., None]
    logits_NAK = outputs["classes"].flatten(2).transpose(1, 2)
    focal = sigmoid_focal_loss(logits_NAK, wanted_NAK.float(), reduction="sum") / positive_NA.sum()
    wanted_P = centreness(centres_A2, boxes_NA4)[positive_NA]
    found_NA4, _ = dense(outputs)
    ciou_P = complete_box_iou_loss(found_NA4[positive_NA], boxes_NA4[positive_NA])
    boxes = (wanted_P * ciou_P).sum() / wanted_P.sum()
    logit_P = outputs["centreness"].flatten(1)[positive_NA]
    return focal + 2 * boxes + F.binary_cross_entropy_with_logits(logit_P, wanted_P)


def fit(network: DigitsDetector, generator: torch.Generator, seed: int) -> None:
    """AdamW under a one-cycle cosine over EPOCHS."""
    pixels, targets = place_digits("train", NUM_IMAGES, seed=seed + 1)
    norm_NCHW, centres_A2 = DETECTOR_SPEC.pixels_to_norm(pixels), cell_centres(12, 12)
    cells = [cell_targets(each["boxes"], each["labels"], centres_A2) for each in targets]
    classes_NA, boxes_NA4 = (torch.stack(part) for part in zip(*cells, strict=True))
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * (NUM_IMAGES // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    network.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(NUM_IMAGES, generator=generator).split(BATCH):
            value = loss(network(norm_NCHW[batch]), classes_NA[batch], boxes_NA4[batch], centres_A2)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            total += value.item()
        typer.echo(f"epoch {epoch + 1} of {EPOCHS}: loss {total * BATCH / NUM_IMAGES:.3f}")


def mean_average_precision(network: DigitsDetector, split: Split) -> float:
    """mAP over IoU .5 to .95 in percent, of the network in eval mode on the canvases of a split."""
    pixels, targets = load_digits_canvases(split)
    with torch.no_grad():
        found = decode(network(DETECTOR_SPEC.pixels_to_norm(pixels)))
    return 100 * float(average_precision(match(found, targets)).mean())


def main(
    out: Annotated[Path, typer.Option(help="File to write.")] = WEIGHTS_PATH,
    seed: Annotated[int, typer.Option(help="Of the initial weights, canvases and order.")] = 0,
) -> None:
    """Train, report and save."""
    network = built(DigitsDetector, seed)
    network.get_parameter("classes.bias").data.fill_(math.log(PRIOR / (1 - PRIOR)))
    fit(network, torch_generator(seed, 0, "train detector"), seed)
    measure_statistics(network, DETECTOR_SPEC.pixels_to_norm(load_digits_canvases("train")[0]))
    for split in NUM_CANVASES:
        typer.echo(f"{split} mAP {mean_average_precision(network, split):.2f}")
    save_file(network.state_dict(), out)
    typer.echo(f"wrote {out} ({out.stat().st_size} bytes)")


if __name__ == "__main__":
    typer.run(main)
