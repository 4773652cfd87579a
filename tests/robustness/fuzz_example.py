"""What a fuzzed case finds in its folder: one small example of everything that zsq reads, and odd files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = "embedded:digits"


@dataclass(frozen=True)
class Case:
    """A command line, in a folder that `prepare` gets ready."""

    name: str
    arguments: list[str]
    prepare: Callable[[Path], None] = lambda folder: None


def example(folder: Path) -> None:
    """One small example of everything that zsq reads."""
    import torch
    from PIL import Image

    import zsq
    import zsq.report.build
    import zsq.workflow

    torch.set_num_threads(1)
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        zsq.generate(DIGITS, "noise", count=8, shard_size=4, out="run")
        zsq.generate(DIGITS, "zeroq", count=4, batch=2, iterations=1, out="zeroq")
        zsq.generate(DIGITS, "noise", count=8, shard_size=4, out="unfinished")
        Path("unfinished/manifest.json").unlink()
        Path("unfinished/shards/shard-00001.h5").unlink()
        for to in ("imagefolder", "npy", "npz", "raw"):
            zsq.export("run", to, f"export-{to}")
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (6, 32, 32, 1), dtype=np.uint8)
        np.savez("images.npz", images=pixels, labels=np.arange(6) % 3)
        with zipfile.ZipFile("photos.zip", "w") as archive:
            for index, image in enumerate(pixels):
                path = Path("photos") / str(index % 3) / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[..., 0]).save(path)
                method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)[index % 3]
                archive.write(path, str(path.relative_to("photos")), method)
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        torch.save({"images": tensor, "labels": torch.arange(6) % 3}, "images.pt")
        options = {"observer": "minmax"}
        zsq.quantize(DIGITS, "run", "ptq", "W8A8", set=options, out="student.safetensors")
        Path("net.py").write_text(NETWORK)
        namespace: dict[str, Any] = {}
        exec(NETWORK, namespace)
        torch.save(namespace["Net"]().state_dict(), "net.pt")
        Path("card.toml").write_text(CARD)
        Path("recipe.toml").write_text(RECIPE)
        gap = {"seeds": 1, "set": {"ptq.observer": "minmax"}}
        zsq.measure_gap(DIGITS, ["run"], f"{DIGITS}:val", f"{DIGITS}:test", ["ptq"], ["W8A8"], "gap", **gap)
    finally:
        os.chdir(before)


NETWORK = """
from torch import nn
def Net(width=4):
    convolution = nn.Conv2d(1, width, 3, 4), nn.BatchNorm2d(width), nn.ReLU()
    return nn.Sequential(*convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
"""

CARD = """
architecture = "net:Net"
weights = "net.pt"
num_classes = 10
expected_accuracy = 50.0
[arguments]
width = 4
[image]
channels = 1
size = [32, 32]
mean = [0.5]
std = [0.25]
"""

RECIPE = """
title = "Tiny"
real = "embedded:digits:train"
eval = "photos"
seeds = 1
[teacher]
name = "embedded:digits"
[generate]
count = 4
shard_sets = 1
iterations = 1
[[sources]]
method = "noise"
[[students]]
name = "ptq"
bits = ["W8A8"]
set = { observer = "minmax" }
"""


def odd_files(folder: Path) -> None:
    """What has a name like any file and is none that can be read to its end."""
    os.mkfifo(folder / "fifo")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "nowhere").symlink_to("no-such-file")
    (folder / "empty").mkdir()
    (folder / "nothing").touch()
