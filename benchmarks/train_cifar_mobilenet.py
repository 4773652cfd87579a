"""Train the CIFAR-10 MobileNetV2: python benchmarks/train_cifar_mobilenet.py.

It writes weights, card and architecture to `outputs/cifar-mobilenet`; the teacher is then
`file:outputs/cifar-mobilenet/cifar_mobilenet.toml`. It learns as the transformers of `train_cifar_vit.py` do.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import cifar_mobilenet
import torch
import typer
from cifar_mobilenet import CifarMobileNet
from common import Threads, load_resnet20, test_images, training_images
from train_cifar_vit import fit, logits_of, report_and_save
from train_digits import built

from zsq.contract import Teacher
from zsq.core.seeding import torch_generator

EPOCHS = 15
STEM = "cifar_mobilenet"
CARD = """architecture = "{stem}:CifarMobileNet"
weights = "{stem}.pt"
task = "classify"
num_classes = 10
[image]
channels = 3
size = [32, 32]
mean = {mean}
std = {std}
"""


def main(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("outputs/cifar-mobilenet"),
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = EPOCHS,
    seed: Annotated[int, typer.Option(help="Of the initial weights, the order and the shifts.")] = 0,
    threads: Threads = None,
) -> None:
    """Train, report and save."""
    if threads is not None:
        torch.set_num_threads(threads)
    teacher = load_resnet20()
    pixels_NCHW, test = training_images(teacher.spec).pixels, test_images(teacher.spec)
    target_2NK = torch.stack([logits_of(teacher, each) for each in (pixels_NCHW, pixels_NCHW.flip(-1))])
    out.mkdir(parents=True, exist_ok=True)
    network = built(CifarMobileNet, seed).to(memory_format=torch.channels_last)
    fit(network, teacher.spec, pixels_NCHW, target_2NK, epochs, torch_generator(seed, 0, STEM))
    shutil.copy(cifar_mobilenet.__file__, out)
    report_and_save(Teacher(STEM, network, teacher.spec, 10, ""), test, out, CARD)


if __name__ == "__main__":
    typer.run(main)
