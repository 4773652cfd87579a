"""Train the CIFAR-10 transformer and its twin with batch norm: python benchmarks/train_cifar_vit.py.

It writes weights, cards and the architecture to `outputs/cifar-vit`; teachers are then
`file:outputs/cifar-vit/cifar_vit.toml` and `cifar_vit_bn.toml`. Both learn from the logits of the ResNet-20
of ZSQ_DATA, computed once of each training image and its mirror image. The last iterate is kept, and the test
images are measured once, at the end.
"""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import cifar_vit
import torch
import torch.nn.functional as F
import typer
from cifar_vit import CifarViT
from common import RESNET20, Threads, load_resnet20, test_images, training_images
from torch import Tensor, nn
from train_digits import built

from zsq.contract import Teacher
from zsq.core.imagespec import ImageSpec
from zsq.core.seeding import torch_generator
from zsq.images.imageset import ImageSet

# Name -> whether it has batch norm, and its epochs: with LayerNorm the network learns more slowly.
TWINS = {"cifar_vit": (False, 40), "cifar_vit_bn": (True, 25)}
BATCH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
TEMPERATURE = 4.0
# Pixels by which an image is moved in each direction at most.
MAX_SHIFT = 4

CARD = """architecture = "cifar_vit:CifarViT"
arguments = {{ batch_norm = {batch_norm} }}
weights = "{stem}.pt"
task = "classify"
num_classes = 10
[image]
channels = 3
size = [32, 32]
mean = {mean}
std = {std}
"""


@torch.no_grad()
def logits_of(teacher: Teacher, pixels_NCHW: Tensor) -> Tensor:
    """(N, K)."""
    batches = pixels_NCHW.split(500)
    return torch.cat([teacher.network(teacher.spec.pixels_to_norm(batch)) for batch in batches])


def shifted(pixels_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """The whole batch moved by one random amount; its border is black."""
    row, column = torch.randint(0, 2 * MAX_SHIFT + 1, (2,), generator=generator).tolist()
    height, width = pixels_NCHW.shape[-2:]
    padded = F.pad(pixels_NCHW, [MAX_SHIFT] * 4)
    return padded[..., row : row + height, column : column + width]


def fit(
    network: nn.Module,
    spec: ImageSpec,
    pixels_NCHW: Tensor,
    target_2NK: Tensor,
    epochs: int,
    generator: torch.Generator,
) -> None:
    """AdamW under a one-cycle cosine; KL to the targets of the images, or of their mirror images."""
    steps = len(pixels_NCHW) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, epochs * steps)
    network.train()
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        order = torch.randperm(len(pixels_NCHW), generator=generator)
        for batch in order[: steps * BATCH].split(BATCH):
            mirrored = int(torch.randint(2, (), generator=generator))
            pixels = pixels_NCHW[batch].flip(-1) if mirrored else pixels_NCHW[batch]
            student_NK = network(spec.pixels_to_norm(shifted(pixels, generator)))
            loss = distance(student_NK, target_2NK[mirrored, batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        typer.echo(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.4f}, {seconds:.0f} s")
    network.eval()


def distance(student_NK: Tensor, target_NK: Tensor) -> Tensor:
    """T^2 KL(target || student) at temperature T."""
    student, target = (F.log_softmax(logits / TEMPERATURE, dim=1) for logits in (student_NK, target_NK))
    return TEMPERATURE**2 * F.kl_div(student, target, reduction="batchmean", log_target=True)


def report_and_save(trained: Teacher, test: ImageSet, out: Path, card: str, **values: str) -> None:
    """Print the accuracy on the test images; write the weights and the card, filled in with `values`."""
    right = logits_of(trained, test.pixels).argmax(1) == test.labels
    typer.echo(f"{trained.name}: test accuracy {100 * right.double().mean().item():.2f}")
    torch.save(trained.network.state_dict(), out / f"{trained.name}.pt")
    mean, std = list(trained.spec.mean), list(trained.spec.std)
    text = card.format(stem=trained.name, mean=mean, std=std, **values)
    (out / f"{trained.name}.toml").write_text(text, encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("outputs/cifar-vit"),
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images, of both networks alike.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights, the order and the shifts.")] = 0,
    threads: Threads = None,
) -> None:
    """Train both, report and save."""
    if threads is not None:
        torch.set_num_threads(threads)
    teacher = load_resnet20()
    pixels_NCHW, test = training_images(teacher.spec).pixels, test_images(teacher.spec)
    typer.echo(f"logits of {RESNET20} on {len(pixels_NCHW)} images and their mirror images")
    target_2NK = torch.stack([logits_of(teacher, each) for each in (pixels_NCHW, pixels_NCHW.flip(-1))])
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(cifar_vit.__file__, out)
    for name, (batch_norm, own_epochs) in TWINS.items():
        network = built(partial(CifarViT, batch_norm=batch_norm), seed)
        generator = torch_generator(seed, 0, "cifar vit")
        fit(network, teacher.spec, pixels_NCHW, target_2NK, epochs or own_epochs, generator)
        trained = Teacher(name, network, teacher.spec, 10, "")
        report_and_save(trained, test, out, CARD, batch_norm=str(batch_norm).lower())


if __name__ == "__main__":
    typer.run(main)
