"""`embedded:digits-detector`: a small one-stage detector for handwritten digits on 96-px canvases.

The network ends in raw maps; `dense` and `decode` make boxes of them, as the functions that a card names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from zsq.contract import Teacher
from zsq.core.boxes import Target, clipped
from zsq.core.imagespec import ImageSpec
from zsq.tasks.detect import Detect
from zsq.teacher.digits import ResidualBlock
from zsq.teacher.digits_canvases import CANVAS
from zsq.teacher.load import build_without_global_rng, load_weights, read_state_dict

WEIGHTS_PATH = Path(__file__).parent / "digits-detector.safetensors"

STRIDE = 8
NUM_CLASSES = 10

# As published for FCOS (Tian et al., ICCV 2019), whose form the heads have.
LEAST_SCORE, NMS_IOU, MOST_BOXES = 0.001, 0.6, 100


class DigitsDetector(nn.Module):
    """Stem, three residual blocks and one shared tower down to a 12 x 12 grid: 45 k parameters, 8 M
    multiply-adds per image."""

    def __init__(self, widths: tuple[int, int, int, int] = (12, 16, 32, 24)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.block1 = ResidualBlock(widths[0], widths[1], 2)
        self.block2 = ResidualBlock(widths[1], widths[2], 2)
        self.block3 = ResidualBlock(widths[2], widths[2], 1)
        self.tower = nn.Conv2d(widths[2], widths[3], 3, 1, 1, bias=False)
        self.tower_bn = nn.BatchNorm2d(widths[3])
        self.tower_relu = nn.ReLU()
        self.classes = nn.Conv2d(widths[3], NUM_CLASSES, 1)
        self.distances = nn.Conv2d(widths[3], 4, 1)
        self.centreness = nn.Conv2d(widths[3], 1, 1)

    def forward(self, norm_NCHW: Tensor) -> dict[str, Tensor]:
        """(N, 1, H, W) -> raw maps (N, ., H / 8, W / 8): `classes` (10) and `centreness` (1) before the
        sigmoid, `distances` (4) from a cell's centre to left, top, right and bottom before the softplus."""
        x = self.relu(self.bn1(self.conv1(norm_NCHW)))
        x = self.block3(self.block2(self.block1(x)))
        x = self.tower_relu(self.tower_bn(self.tower(x)))
        return {"classes": self.classes(x), "distances": self.distances(x), "centreness": self.centreness(x)}


def cell_centres(rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """(A, 2) x and y in pixels of all cells, row by row."""
    y, x = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    return (torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5) * STRIDE


def dense(outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes (N, A, 4) as x1 y1 x2 y2 in pixels and scores (N, A, 10) in 0..1 of all cells; differentiable.

    A score is the geometric mean of class and centre-ness, as in FCOS.
    """
    rows, columns = outputs["distances"].shape[-2:]
    centres_A2 = cell_centres(rows, columns, outputs["distances"].device)
    distances_NA4 = STRIDE * F.softplus(outputs["distances"]).flatten(2).transpose(1, 2)
    boxes_NA4 = torch.cat([centres_A2 - distances_NA4[..., :2], centres_A2 + distances_NA4[..., 2:]], dim=-1)
    # sqrt(a b) of sigmoids by their logarithms: its gradient stays finite where both vanish.
    logs = 0.5 * (F.logsigmoid(outputs["classes"]) + F.logsigmoid(outputs["centreness"]))
    return boxes_NA4, logs.exp().flatten(2).transpose(1, 2)


def decode(outputs: Mapping[str, Tensor]) -> list[Target]:
    """Per image `boxes` (n, 4) inside the canvas, `scores` (n,) and `labels` (n,), the best first; the best
    class of a cell, NMS within classes."""
    rows, columns = outputs["distances"].shape[-2:]
    found = []
    for boxes_A4, scores_AK in zip(*dense(outputs), strict=True):
        best_A, labels_A = scores_AK.max(dim=1)
        kept_A = best_A > LEAST_SCORE
        some = {"boxes": boxes_A4[kept_A], "scores": best_A[kept_A], "labels": labels_A[kept_A]}
        some = clipped(some, (STRIDE * rows, STRIDE * columns))
        order = batched_nms(some["boxes"], some["scores"], some["labels"], NMS_IOU)[:MOST_BOXES]
        found.append({name: values[order] for name, values in some.items()})
    return found


# Moments of the train split's pixels.
DETECTOR_SPEC = ImageSpec(channels=1, size=(CANVAS, CANVAS), mean=(0.2476,), std=(0.1408,))

# mAP over IoU .5 to .95 in points, on the test canvases.
EXPECTED_MAP = 86.42


def load_digits_detector() -> Teacher:
    """The shipped detector, as `benchmarks/train_digits_detector.py` wrote it."""
    state, sha256 = read_state_dict(WEIGHTS_PATH)
    network = build_without_global_rng(DigitsDetector)
    load_weights(network, state, str(WEIGHTS_PATH))
    task = Detect(decode=decode, dense=dense, labels=tuple(range(NUM_CLASSES)))
    return Teacher(
        "embedded:digits-detector",
        network,
        DETECTOR_SPEC,
        None,
        sha256,
        task=task,
        expected_accuracy=EXPECTED_MAP,
        classes=tuple(map(str, range(NUM_CLASSES))),
    )
