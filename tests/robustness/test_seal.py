"""A sealed run, watched from outside: what its manifest states is what Python says was opened."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from commands import call, run_python

from zsq.core.seal import DATA_ENDINGS, merged
from zsq.shards.manifest import read_manifest

# A hook of the test's own, there before any of zsq. What a run may do beyond its teacher is told as code.
WATCHED = """
import json, os, sys
from pathlib import Path
opened, others = [], []
def watch(event, args):
    if event == "open" and not isinstance(args[0], int):
        opened.append(os.path.realpath(os.fsdecode(args[0])))
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.system"):
        others.append(event if event != "subprocess.Popen" else os.path.basename(args[0]))
sys.addaudithook(watch)
import zsq
import zsq.synthesis.synthesize  # which asks what machine this is
from zsq.config import RuntimeConfig
from zsq.core.errors import ZsqError
from zsq.generators import METHODS

def run(out, act=lambda: None, **options):
    cls = METHODS["noise"]
    made = cls.synthesize
    def synthesize(self, group, log):
        act()
        return made(self, group, log)
    cls.synthesize = synthesize
    opened.clear(), others.clear()
    try:
        zsq.generate("file:card.toml", "noise", count=4, shard_size=4, out=out, sealed=True,
                     runtime=RuntimeConfig(threads=1, compile="off"), **options)
        return {"opened": list(opened), "others": list(others), "error": None}
    except ZsqError as error:
        return {"opened": list(opened), "others": list(others), "error": f"{type(error).__name__}: {error}"}
    finally:
        cls.synthesize = made

def swallowed():
    try:
        open("photo.png", "rb")
    except Exception:
        pass

def socket():
    import socket
    socket.create_connection(("127.0.0.1", 9))

def bundled():
    import sklearn.datasets
    open(Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz", "rb")

def linked():
    os.symlink(Path("photo.png").resolve(), "run-linked/inside.png")
    open("run-linked/inside.png", "rb")

found = {"clean": run("run-clean")}
for act in (swallowed, socket, bundled, linked, lambda: os.system("true"), lambda: open("new.txt", "w")):
    name = act.__name__ if act.__name__ != "<lambda>" else f"other-{len(found)}"
    found[name] = run(f"run-{name}", act)
open("photo.png", "rb").close()  # nothing is refused once the run is over
print(json.dumps(found))
"""

CARD = """
architecture = "net:Net"
weights = "net.pt"
num_classes = 5
[image]
size = [16, 16]
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
"""

NET = """
from torch import nn

def Net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, 5))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "card.toml").write_text(CARD)
    (folder / "net.py").write_text(NET)
    namespace = {}
    exec(NET, namespace)
    torch.save(namespace["Net"]().state_dict(), folder / "net.pt")
    (folder / "photo.png").write_bytes(b"an image")
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return json.loads(run_python(WATCHED, cwd=folder))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_manifest_states_the_files_of_the_teacher(found, folder):
    assert found["clean"]["error"] is None
    manifest = read_manifest(folder / "run-clean")
    stated = {(file.role, file.name, file.sha256) for file in manifest.seal.files}
    named = [("card", "card.toml"), ("code", "net.py"), ("weights", "net.pt")]
    assert manifest.sealed
    assert {(role, name, sha256(folder / name)) for role, name in named} <= stated
    assert {name for _, name, _ in stated} - {name for _, name in named} <= {
        path.name for path in folder.glob("__pycache__/*")
    }
    assert not any("/" in file.name for file in manifest.seal.files)


def test_nothing_else_was_opened(found, folder):
    """By the test's own hook: what is in the user's folder is the teacher's or the run's."""
    own = folder.resolve()
    inside = {Path(path).relative_to(own) for path in found["clean"]["opened"] if own in Path(path).parents}
    outside = [path for path in found["clean"]["opened"] if not path.startswith((str(own), "/proc", "/sys"))]
    stated = {file.name for file in read_manifest(folder / "run-clean").seal.files}
    # Python looks for compiled code, finds none and makes it.
    looked = {path.name for path in inside if path.parts[0] not in ("run-clean", "__pycache__")}
    assert {"card.toml", "net.py", "net.pt"} <= looked <= stated
    assert not [path for path in outside if path.lower().endswith(DATA_ENDINGS) and Path(path).exists()]
    assert set(found["clean"]["others"]) == set(read_manifest(folder / "run-clean").seal.programs)
    assert not [name for name in found["clean"]["others"] if name.startswith("socket")]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("swallowed", "open photo.png"),
        ("socket", "open a socket"),
        ("bundled", "open digits.csv.gz"),
        ("linked", "open photo.png"),
        ("other-5", "start"),
        ("other-6", "open new.txt"),
    ],
)
def test_anything_else_ends_the_run(name, what, found, folder):
    error = found[name]["error"]
    assert error.startswith(f"SealError: a sealed run wanted to {what}") and "\n" not in error
    assert not (folder / f"run-{name}" / "manifest.json").exists()
    assert not (folder / "new.txt").exists()


def test_verify_shows_the_seal_and_resume_keeps_it(found, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    shown = call(capsys, "verify", "run-clean").out
    assert "sealed: " in shown and f"weights net.pt {sha256(folder / 'net.pt')}" in shown
    again = ("generate", "--teacher", "file:card.toml", "--method", "noise", "--count", 4, "--shard-size", 4)
    outcome = call(capsys, *again, "--out", "run-clean", "--resume", "--threads", 1, "--compile", "off")
    assert outcome.status == 2 and "--resume with sealed = None" in outcome.complaint()


def test_a_sealed_run_reads_no_images(capsys, tmp_path):
    options = ("--teacher", "embedded:digits", "--method", "fdda", "--real", "embedded:digits:train")
    outcome = call(capsys, "generate", *options, "--sealed", "--out", tmp_path / "run")
    assert outcome.status == 2 and "--sealed with --real" in outcome.complaint()


def test_ranks_merge_what_they_opened():
    one = {"files": [{"role": "weights", "name": "a.pt", "sha256": "0" * 64}], "counts": {"run": 2}}
    records = [one | {"programs": []}, one | {"programs": ["g++"]}]
    merged_record = merged(records, "127.0.0.1:29500")
    assert (merged_record.processes, merged_record.counts) == (2, {"run": 4})
    assert len(merged_record.files) == 1 and merged_record.programs == ("g++",)
    assert "which met at 127.0.0.1:29500" in merged_record.lines()[0]
