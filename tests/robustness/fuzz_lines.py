"""Command lines that the fuzzer draws, with some values from the kinds of trouble that users met."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from typing import Any

from fuzz_example import DIGITS, Case, odd_files

VALID_SHARE = 0.6  # of command lines with no value of the wrong kind

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
