"""Damaged files, and files that are something else than they should be, each with a command that reads it."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fuzz_example import DIGITS, Case


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
