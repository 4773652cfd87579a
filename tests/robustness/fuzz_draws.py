"""What the fuzzer draws: command lines with some values from the kinds of trouble that users met, and files
that are damaged or something else than they should be."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

DIGITS = "embedded:digits"
VALID_SHARE = 0.6  # of command lines with no value of the wrong kind


@dataclass(frozen=True)
class Case:
    """A command line, in a folder that `prepare` gets ready."""

    name: str
    arguments: list[str]
    prepare: Callable[[Path], None] = lambda folder: None


# What a case finds in its folder.


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


# Values that are wrong in a way that somebody met.

PATHS = [
    *(
        "",
        ".",
        "/",
        "..",
        "~",
        " ",
        os.fsdecode(b"\xff"),
        os.fsdecode(b"run\xff/x"),
        "x" * 300,
        "a\nb",
        "é/日",
    ),
    *("fifo", "device", "nowhere", "empty", "nothing", "run", "student.json", "photos/0/0.png", "missing"),
    *("photos.zip", "images.npz", "card.toml", "/dev/null", "/dev/full", "/proc/self/mem", "run/run.json/x"),
]
NUMBERS = [
    *(
        "0",
        "-1",
        "1.5",
        "",
        " ",
        "nan",
        "inf",
        "-inf",
        "1e9",
        "1e400",
        "0x10",
        "1_0",
        "٣",
        "9" * 30,
        "9" * 5000,
    ),
    *(str(2**31), str(2**63), str(2**64), "99999999999", "100000000", "[" * 5000, "{" * 5000, '"', "null"),
]
TEXTS = [
    "",
    " ",
    "dsgg",
    "PTQ",
    "ptq,ptq",
    "W4",
    "W4A4W4A4",
    "W0A0",
    "x" * 5000,
    os.fsdecode(b"\xfe"),
    "a=b",
    "🙂",
]
SOURCES = [
    *(
        f"{DIGITS}#labels=0-999999999",
        f"{DIGITS}:val#labels=5-1",
        "run#labels=0-0",
        "#labels=0-1",
        "embedded:",
    ),
    *(
        "embedded:digits:",
        "embedded:letters",
        "torchvision:",
        "torchvision:CIFAR10:nowhere",
        "file:",
        "file:/",
    ),
    *("torchvision:Nothing:x", "resnet1", "file:card.toml", "http://127.0.0.1:9/x", "cifar10:resnet20"),
]
KINDS = {
    "number": NUMBERS,
    "path": PATHS,
    "text": TEXTS,
    "source": [*SOURCES, *PATHS],
    "pair": ["", "=", "a", "=1", "iterations", *(f"iterations={n}" for n in NUMBERS), "\udcff=1"],
}

# Command -> option -> (kind of trouble, valid values); an option without a flag is an argument.
RUNTIME = {
    "--precision": ("text", ["auto", "fp32"]),
    "--compile": ("text", ["auto", "off"]),
    "--threads": ("number", ["1"]),
    "--device": ("text", ["auto", "cpu"]),
}
TEACHERS = ("source", [DIGITS, DIGITS, DIGITS, "file:card.toml"])
IMAGES = ("source", ["run", "run/shards", "photos", "photos.zip", "images.npz", f"{DIGITS}:val", "zeroq"])
OUT = ("path", ["out", "new/out", "./out", "new/../out", "out.safetensors"])
FIT = {
    "--first-last": ("number", ["8", "4"]),
    "--passes": ("text", ["fold", "fold,equalize", "adapt-bn"]),
    "--fit": ("text", ["refuse", "crop", "stretch"]),
    "--class-names": ("path", ["by-order"]),
}
COMMANDS: dict[str, dict[str, tuple[str, list[str]]]] = {
    "generate": {
        "--teacher": TEACHERS,
        "--method": ("text", ["noise"]),
        "--weights": ("path", ["net.pt"]),
        "--count": ("number", ["1", "2", "5"]),
        "--batch": ("number", ["1", "2"]),
        "--shard-size": ("number", ["1", "3"]),
        "--seed": ("number", ["0", "7", str(2**63 - 1)]),
        "--out": OUT,
        "--iterations": ("number", ["1", "2"]),
        "--effort": ("text", ["quick"]),
        "--real": ("source", [f"{DIGITS}:val"]),
        "--set": ("pair", []),
        "--resume": ("flag", []),
        **RUNTIME,
    },
    "quantize": {
        "--teacher": TEACHERS,
        "--images": IMAGES,
        "--student": ("text", ["ptq"]),
        "--bits": ("text", ["W8A8", "W4A4", "W4A8"]),
        "--method": ("text", ["noise", "leaves"]),
        "--effort": ("text", ["quick"]),
        "--weights": ("path", ["net.pt"]),
        "--seed": ("number", ["0", "3"]),
        "--eval": ("source", ["photos", "images.npz"]),
        "--count": ("number", ["2", "4"]),
        "--out": OUT,
        "--set": ("pair", []),
        **FIT,
        **RUNTIME,
    },
    "gap": {
        "--teacher": ("source", [DIGITS]),
        "--shards": ("path", ["run", "zeroq", "run/shards"]),
        "--real": ("source", [f"{DIGITS}:val", f"{DIGITS}:train#labels=0-4"]),
        "--eval": ("source", [f"{DIGITS}:val"]),
        "--student": ("text", ["ptq"]),
        "--bits": ("text", ["W8A8", "W4A4"]),
        "--out": ("path", ["out"]),
        "--seeds": ("number", ["1"]),
        "--count": ("number", ["2", "4"]),
        "--set": ("pair", ["ptq.observer=minmax"]),
        "--show-real": ("flag", []),
        "--resume": ("flag", []),
        **FIT,
        **RUNTIME,
    },
    "run": {
        "": ("path", ["recipe.toml"]),
        "--out": ("path", ["out"]),
        "--resume": ("flag", []),
        "--budget-hours": ("number", ["1", "0.5"]),
        **RUNTIME,
    },
    "list": {
        "": ("text", ["methods", "teachers", "students", "passes", "recipes"]),
        "--json": ("flag", []),
        "--teacher": TEACHERS,
    },
    "inspect": {
        "": ("path", ["run", "zeroq/shards", "student.json", "student.safetensors"]),
        "--teacher": TEACHERS,
        "--images": ("source", ["photos", "images.npz"]),
        "--weights": ("path", ["net.pt"]),
    },
    "verify": {
        "": ("path", ["run", "run/shards"]),
        "--against": ("path", ["export-npz", "export-imagefolder", "export-npy", "export-raw"]),
        "--tolerance": ("number", ["0.001", "1"]),
    },
    "export": {
        "": ("path", ["run", "zeroq"]),
        "--to": ("text", ["imagefolder", "npy", "npz", "raw"]),
        "--for": ("text", ["rknn", "qnn", "hailo", "modelopt"]),
        "--each": ("text", ["png", "npy", "raw"]),
        "--out": ("path", ["out"]),
        "--layout": ("text", ["nchw", "nhwc"]),
        "--range": ("text", ["uint8", "unit", "norm"]),
        "--card": ("flag", []),
    },
    "import": {
        "": (
            "source",
            ["run", "photos", "photos.zip", "images.npz", "images.pt", "export-npy", "export-raw"],
        ),
        "--out": ("path", ["out"]),
        "--name": ("text", ["mine"]),
        "--mean": ("number", ["0.5"]),
        "--std": ("number", ["0.5"]),
        "--layout": ("text", ["nchw", "nhwc"]),
    },
    "audit": {
        "--teacher": ("source", [DIGITS]),
        "--shards": ("path", ["run", "zeroq"]),
        "--train": ("source", [f"{DIGITS}:train#labels=0-1"]),
        "--holdout": ("source", [f"{DIGITS}:test#labels=0-1"]),
        "--out": ("path", ["out.json"]),
        "--threads": ("number", ["1"]),
    },
}
REQUIRED = {
    "generate": ["--teacher", "--method", "--count"],
    "quantize": ["--teacher", "--images", "--student", "--bits"],
    "gap": ["--teacher", "--shards", "--real", "--eval", "--student", "--bits", "--out", "--seeds", "--set"],
    "export": ["", "--to", "--out"],
    "import": ["", "--out"],
    "audit": ["--teacher", "--shards", "--train", "--holdout", "--out"],
}
WEIGHTS = {
    "generate": 6,
    "quantize": 5,
    "gap": 2,
    "run": 1,
    "audit": 1,
    "export": 2,
    "import": 2,
    "verify": 2,
}

# Options that say nothing alone, or that another option has no place beside.
ALONE = (
    "--weights",
    "--real",
    "--iterations",
    "--effort",
    "--set",
    "--passes",
    "--mean",
    "--std",
    "--layout",
    "--range",
)


def lines(number: int, seed: int) -> Iterator[Case]:
    """Command lines; `VALID_SHARE` of them are of valid values alone."""
    for index in range(number):
        rng = random.Random(f"{seed} line {index}")
        command = rng.choices(list(COMMANDS), [WEIGHTS.get(name, 1) for name in COMMANDS])[0]
        words = _valid(command, rng)
        valid = rng.random() < VALID_SHARE
        for _ in range(0 if valid else rng.choice([1, 1, 2, 3])):
            _spoil(command, words, rng)
        arguments = [command, *(word for option, value in words for word in _typed(option, value))]
        shown = " ".join(word if len(word) < 60 else word[:60] + "..." for word in arguments)
        shown = shown.encode(errors="backslashreplace").decode()
        yield Case(f"line {index} {'valid' if valid else 'spoilt'}: {shown}", arguments, odd_files)


def _typed(option: str, value: str | None) -> list[str]:
    if not option:
        return [] if value is None else [value]
    return [option] if value is None else [option, value]


def _valid(command: str, rng: random.Random) -> list[tuple[str, str | None]]:
    """Options with values that go together; None is the value of a flag."""
    known, required = COMMANDS[command], REQUIRED.get(command, [""])
    words: list[tuple[str, str | None]] = []
    for option, (kind, values) in known.items():
        if option in required or (option not in ALONE and rng.random() < 0.25):
            words.append((option, None if kind == "flag" else rng.choice(values)))
    if command == "inspect":
        path: list[tuple[str, str | None]] = [("", rng.choice(known[""][1]))]
        return path if rng.random() < 0.7 else _teacher_alone(known, rng)
    chosen = dict(words)
    if command in ("generate", "quantize"):
        words = [word for word in words if word[0] not in ("--method", "--student", "--resume")]
        words += _method(rng, chosen) if command == "generate" else _student(rng)
    if command == "quantize" and rng.random() < 0.2:
        # Images are made.
        words = [word for word in words if word[0] not in ("--images", "--count")]
        words += [("--method", rng.choice(known["--method"][1])), ("--count", "4")]
    if command == "generate" and rng.random() < 0.1:
        return [("--teacher", DIGITS), ("--method", "noise"), ("--resume", None), *_resumed(rng)]
    if command == "import":
        words += [("--mean", "0.5"), ("--std", "0.5")] if rng.random() < 0.1 else []
    if command == "export" and chosen["--to"] != "imagefolder" and rng.random() < 0.6:
        words += [(option, rng.choice(known[option][1])) for option in ("--layout", "--range")]
    if command == "quantize" and "--out" not in chosen and rng.random() < 0.2:
        words.append(("--passes", "fold"))
    return words


def _teacher_alone(
    known: dict[str, tuple[str, list[str]]], rng: random.Random
) -> list[tuple[str, str | None]]:
    words: list[tuple[str, str | None]] = [("--teacher", rng.choice(known["--teacher"][1]))]
    return words + ([("--images", rng.choice(known["--images"][1]))] if rng.random() < 0.3 else [])


def _resumed(rng: random.Random) -> list[tuple[str, str | None]]:
    same = [("--count", "8"), ("--shard-size", "4"), ("--out", rng.choice(["unfinished", "run"]))]
    return [*same, ("--count", "12")] if rng.random() < 0.3 else same


def _method(rng: random.Random, chosen: dict[str, str | None]) -> list[tuple[str, str | None]]:
    from zsq.generators import METHODS

    name = rng.choice(["noise", "noise", *METHODS])
    words: list[tuple[str, str | None]] = [("--method", name)]
    fields = METHODS[name].options_class.model_fields
    if "iterations" in fields:
        words.append(("--iterations", rng.choice(["1", "2"])))
    if METHODS[name].facts.needs_real:
        words.append(("--real", f"{DIGITS}:val"))
    words += [("--out", "out")] if "--out" not in chosen and rng.random() < 0.8 else []
    return words + _setting(rng, {key: field.default for key, field in fields.items()}, "")


def _student(rng: random.Random) -> list[tuple[str, str | None]]:
    from zsq.students import STUDENTS, student_class

    name = rng.choice(["ptq", "ptq", "ptq", *STUDENTS, "ptq,kd", "genie-m,lsq-kd"])
    defaults = student_class(name).options_class().model_dump(mode="json")
    steps = [("--set", f"{key}=1") for key in defaults if _counts_steps(key)]
    return [("--student", name), *steps, *_setting(rng, defaults, "")]


def _counts_steps(key: str) -> bool:
    """Of a student alone, or of one in a chain."""
    return key.rpartition(".")[2] == "iterations"


def _setting(rng: random.Random, defaults: dict[str, Any], prefix: str) -> list[tuple[str, str | None]]:
    """Now and then one option at its default."""
    plain = {
        key: v for key, v in defaults.items() if not _counts_steps(key) and isinstance(v, int | float | str)
    }
    if not plain or rng.random() < 0.7:
        return []
    key = rng.choice(sorted(plain))
    return [("--set", f"{prefix}{key}={json.dumps(plain[key])}")]


def _spoil(command: str, words: list[tuple[str, str | None]], rng: random.Random) -> None:
    """One thing wrong: a value, an option too many or too few, a pair."""
    known = COMMANDS[command]
    way = rng.choice(["value"] * 6 + ["add", "add", "drop", "unknown", "twice", "set"])
    if way == "add":
        option = rng.choice(list(known))
        words.append((option, rng.choice(KINDS.get(known[option][0], [None]))))
    elif way == "unknown":
        words.append((rng.choice(["--bogus", "--", "-x", "--out=", "extra", "--set", ""]), None))
    elif way == "set" and "--set" in known:
        keys = [
            "iterations",
            "learning_rate",
            "batch",
            "observer",
            "ptq.observer",
            "decay",
            "weight_observer",
        ]
        words.append(("--set", f"{rng.choice(keys)}={rng.choice(NUMBERS + TEXTS)}"))
    elif words:
        index = rng.randrange(len(words))
        option = words[index][0]
        short = option == "--iterations" or (words[index][1] or "").startswith("iterations=")
        if way == "drop":
            # Without these a run takes as long as it should.
            words[index : index + 1] = [words[index]] if short or option == "--count" else []
        elif way == "twice":
            words.append(words[index])
        else:
            kind = known.get(option, ("text", []))[0]
            words[index] = (option, None if kind == "flag" else rng.choice(KINDS[kind]))


# Files.


def _resumed_with(count: int) -> list[str]:
    return f"generate --teacher {DIGITS} --method noise --count {count} --shard-size 4 --resume".split()


def _fitted_on(images: str, teacher: str = DIGITS) -> list[str]:
    return f"quantize --teacher {teacher} --images {images} --student ptq --bits W8A8".split()


READERS: dict[str, list[list[str]]] = {
    "run/shards/shard-00000.h5": [
        *(["verify", "run"], ["inspect", "run"], ["export", "run", "--to", "npy", "--out", "out"]),
        _fitted_on("run"),
        _resumed_with(8),
        ["import", "run", "--out", "out"],
    ],
    "run/manifest.json": [
        *(["verify", "run"], ["inspect", "run"], ["export", "run", "--to", "npz", "--out", "out"]),
        _resumed_with(8),
    ],
    "run/run.json": [
        _resumed_with(8),
        _resumed_with(12),
    ],
    "run/events.jsonl": [_resumed_with(12)],
    "run/contact_sheet.png": [["inspect", "run"]],
    "unfinished/shards": [_resumed_with(8)],
    "photos.zip": [
        ["import", "photos.zip", "--out", "out"],
        _fitted_on("photos.zip"),
    ],
    "photos/0/0.png": [
        ["import", "photos", "--out", "out"],
        _fitted_on("photos"),
    ],
    "images.npz": [
        ["import", "images.npz", "--out", "out"],
        _fitted_on("images.npz"),
    ],
    "images.pt": [["import", "images.pt", "--out", "out"]],
    "student.json": [["inspect", "student.json"]],
    "student.safetensors": [["inspect", "student.safetensors"]],
    "card.toml": [
        ["generate", "--teacher", "file:card.toml", "--method", "zeroq", "--count", "2", "--iterations", "1"],
        _fitted_on("run", "file:card.toml"),
    ],
    "net.pt": [["generate", "--teacher", "file:card.toml", "--method", "noise", "--count", "2"]],
    "recipe.toml": [["run", "recipe.toml", "--out", "out"]],
    "gap/fits.jsonl": [
        [
            *("gap", "--teacher", DIGITS, "--shards", "run", "--real", f"{DIGITS}:val", "--seeds", "1"),
            *("--eval", f"{DIGITS}:test", "--student", "ptq", "--bits", "W8A8", "--out", "gap", "--resume"),
            *("--set", "ptq.observer=minmax"),
        ]
    ],
    "export-npy/EXPORT.json": [
        ["verify", "run", "--against", "export-npy"],
        ["import", "export-npy", "--out", "o"],
    ],
    "export-npz/images.npz": [["verify", "run", "--against", "export-npz"]],
    "export-imagefolder/SHA256SUMS": [["verify", "run", "--against", "export-imagefolder"]],
}


def damaged_files(number: int, seed: int, template: Path) -> Iterator[Case]:
    """A file of the example, damaged, and a command that reads it."""
    for index in range(number):
        rng = random.Random(f"{seed} file {index}")
        target = list(READERS)[index % len(READERS)]
        arguments = list(rng.choice(READERS[target]))
        if arguments[0] == "generate" and "--resume" in arguments:
            arguments += ["--out", target.partition("/")[0]]
        elif arguments[0] == "generate":
            arguments += ["--out", "out"]
        name, damage = _damage(template / target, rng)
        yield Case(
            f"file {index}: {target} {name}: zsq {' '.join(arguments)}", arguments, _applied(target, damage)
        )


Damage = Callable[[Path], None]


def _applied(target: str, damage: Damage) -> Callable[[Path], None]:
    return lambda folder: damage(folder / target)


def _damage(path: Path, rng: random.Random) -> tuple[str, Damage]:
    """How, and what does it to a file."""
    ways = [("becomes a pipe", _pipe), ("becomes a link to a device", _device), ("becomes a folder", _folder)]
    if not path.is_file():
        return rng.choice([*ways, ("becomes a file", _replaced(b"file"))])
    data, ends = path.read_bytes(), path.suffix
    drawn: list[Callable[[], tuple[str, bytes]]] = [lambda: _bytes(data, rng)]
    if ends in (".json", ".jsonl"):
        drawn += [lambda: _json(data, rng)] * 3
    if ends == ".toml":
        drawn += [lambda: _toml(data, rng)] * 4
    if path.name == "images.npz":
        drawn += [lambda: _npz(data, rng)] * 2
    if ends == ".h5":
        drawn += [lambda: _shard(data, rng)] * 2
    if rng.random() < 0.15:
        return rng.choice(ways)
    name, content = rng.choice(drawn)()
    return name, _replaced(content)


def _replaced(content: bytes) -> Damage:
    def damage(path: Path) -> None:
        _gone(path)
        path.write_bytes(content)

    return damage


def _gone(path: Path) -> None:
    if path.is_dir():
        for inside in path.iterdir():
            inside.unlink()
        path.rmdir()
    path.unlink(missing_ok=True)


def _pipe(path: Path) -> None:
    _gone(path)
    os.mkfifo(path)


def _device(path: Path) -> None:
    _gone(path)
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    _gone(path)
    path.mkdir()


def _bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    at = rng.randrange(len(data))
    length = rng.choice([1, 8, 64, 512])
    noise = rng.randbytes(length)
    ways = {
        "is empty": b"",
        "is cut": data[:at],
        "has a bit flipped": data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
        "has noise in it": data[:at] + noise + data[at + length :],
        "has a hole": data[:at] + bytes(length) + data[at + length :],
        "lacks a part": data[:at] + data[at + length :],
        "has a part twice": data[: at + length] + data[at:],
        "is of ones there": data[:at] + b"\xff" * length + data[at + length :],
        "is noise": rng.randbytes(len(data)),
    }
    name = rng.choice(list(ways))
    return f"{name} (at {at}, {length})", ways[name]


ODD_JSON = [
    *(
        "0",
        "-1",
        "2000000000",
        str(2**62),
        str(2**63),
        "1e400",
        "NaN",
        "null",
        "true",
        "[]",
        "{}",
        '""',
        '"\\ud800"',
    ),
    *('"x"', "1.5", "9" * 5000, "[" * 3000, '{"a":' * 3000, "16384", '"../../x"', '"' + "y" * 3000 + '"'),
]


def _json(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One value replaced, removed or added anywhere in it; the text is made by hand, as json would refuse."""
    line, *rest = data.decode().splitlines() if data.count(b"\n}") == 0 else [data.decode()]
    value = json.loads(line)
    places = list(_places(value, ()))
    place, odd = rng.choice(places), rng.choice(ODD_JSON)
    mark = "@fuzz@"
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    way = rng.choice(["replaced", "replaced", "replaced", "removed", "added"])
    if way == "removed":
        del holder[place[-1]]
    elif way == "added" and isinstance(holder, dict):
        holder["colour"] = mark
    else:
        holder[place[-1]] = mark
    text = json.dumps(value).replace(f'"{mark}"', odd)
    where = ".".join(map(str, place))
    return f"{where} {way} by {odd[:20]}", "\n".join([text, *rest, ""]).encode()


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield (*path, key)
        yield from _places(inside, (*path, key))


ODD_TOML = [
    *("0", "-1", "1e400", "nan", "inf", "true", '""', "[]", "{}", str(2**62), "9" * 5000, "[" * 3000, '"x"'),
    *(
        "1979-05-27",
        '"/dev/zero"',
        '"fifo"',
        "[16384, 16384]",
        '"${NOT_SET}"',
        '"os:system"',
        "[1, 1]",
        "1.5",
    ),
]


def _toml(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    rows = data.decode().strip().splitlines()
    at = rng.choice([index for index, row in enumerate(rows) if "=" in row])
    key, odd = rows[at].partition(" = ")[0], rng.choice(ODD_TOML)
    way = rng.choice(["is", "is", "is", "is", "is missing", "is there twice"])
    replaced = {"is": [f"{key} = {odd}"], "is missing": [], "is there twice": [rows[at]] * 2}[way]
    return f"{key} {way} {odd[:20]}", "\n".join([*rows[:at], *replaced, *rows[at + 1 :], ""]).encode()


def _shard(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """An attribute of another content; the file is one that HDF5 reads."""
    target = io.BytesIO(data)
    with h5py.File(target, "r+") as file:
        name = rng.choice(sorted(file.attrs))
        way, value = rng.choice(["of another kind", "replaced"]), json.loads(file.attrs[name])
        odd = rng.choice(ODD_JSON).encode()
        if isinstance(value, dict) and value and way == "replaced":
            key = rng.choice(sorted(value))
            odd = json.dumps(value | {key: "@fuzz@"}).encode().replace(b'"@fuzz@"', odd)
            name = f"{name}.{key}"
        kinds = [3, 2.5, np.array([1, 2]), "text", np.bytes_(b"")]
        content = np.bytes_(odd) if way == "replaced" else rng.choice(kinds)
        file.attrs.create(name.partition(".")[0], content)
    return f"attribute {name} {way} by {odd[:20]!r}", target.getvalue()


def _npz(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Members of another type or shape, with a broken header, or twice."""
    with np.load(io.BytesIO(data)) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    odd: dict[str, Any] = {
        "bytes": images.astype("S3"),
        "structs": np.zeros(6, dtype=[("a", "u1"), ("b", "f4")]),
        "dates": np.zeros((6, 32, 32, 1), dtype="M8[s]"),
        "long doubles": images.astype(np.longdouble),
        "big-endian floats": (images / 255).astype(">f4"),
        "floats": (images / 255).astype("f4"),
        "complex": images.astype(complex),
        "bools": images > 100,
        "three dimensions": images[..., 0],
        "none": images[:0],
        "a scalar": np.uint8(3),
        "objects": np.array([None] * 6),
        "infinite": np.full(images.shape, np.inf, "f4"),
    }
    name = rng.choice([*odd, "twice", "unclosed header", "huge shape", "labels"])
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        header = {"unclosed header": b"{'descr': '|u1', 'fortran_order': False, 'shape': (6, "}
        header["huge shape"] = (
            b"{'descr': '|u1', 'fortran_order': False, 'shape': (2000000000, 32, 32, 1), }\n"
        )
        if name in header:
            text = header[name]
            archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
        else:
            archive.writestr("images.npy", _npy(odd.get(name, images)))
        if name == "twice":
            archive.writestr("images.npy", _npy(images[:2]))
        strange = rng.choice([labels.astype(float), labels + 2**62, labels - 9, labels.astype("u8") + 2**63])
        archive.writestr("labels.npy", _npy(strange if name == "labels" else labels))
    return f"holds {name}", target.getvalue()


def _npy(array: Any) -> bytes:
    target = io.BytesIO()
    np.save(target, array, allow_pickle=True)
    return target.getvalue()
