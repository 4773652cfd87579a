"""A method that says it reads no data opens no image, no data set and no socket, by Python's own audit."""

import json

import pytest
from commands import run_python

# Imports come first: they open what Python keeps beside its modules.
WATCHED = """
import json, socket, sys
from pathlib import Path
from zsq.synthesis import synthesize
from zsq.config import GenerateConfig, RuntimeConfig
from zsq.generators import METHODS
from zsq.images.sources import load_images

seen = []
def watch(event, args):
    if event == "open" and args[0] not in sys.path or event.startswith("socket."):
        seen.append([event, str(args[0])])
sys.addaudithook(watch)

def during(action):
    seen.clear()
    action()
    return list(seen)

def teacher_of(method):
    facts = METHODS[method].facts
    kind = "-detector" if facts.needs_boxes else "-vit" if facts.needs_attention else ""
    return f"embedded:digits{kind}"

def generate(method):
    synthesize.generate(
        GenerateConfig(teacher=teacher_of(method), method=method, count=2, batch=2, shard_size=2,
                       iterations=2, runtime=RuntimeConfig(threads=1, compile="off")),
        Path(method),
    )

methods = [name for name, cls in METHODS.items() if cls.facts.data_read == "none"]
found = {name: during(lambda: generate(name)) for name in methods}
found["control: images"] = during(lambda: load_images("embedded:digits"))
found["control: socket"] = during(lambda: socket.socket().close())
print(json.dumps(found))
"""

DATA_ENDINGS = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    *(".npz", ".npy", ".zip", ".gz", ".tar", ".csv", ".parquet", ".mat", ".pkl", ".bin"),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return json.loads(run_python(WATCHED, cwd=tmp_path_factory.mktemp("watched")))


def data_files(events):
    return [path for event, path in events if event == "open" and path.lower().endswith(DATA_ENDINGS)]


def sockets(events):
    return [event for event, _ in events if event.startswith("socket.")]


def test_the_watch_sees_what_it_should(found):
    assert any("digits" in path for path in data_files(found["control: images"]))
    assert sockets(found["control: socket"])


def test_every_method_without_data_is_watched(found):
    assert {"noise", "zeroq", "deepinversion", "dsg", "genie", "gdfq", "qimera"} <= set(found)


def test_no_image_no_data_set_no_socket(found):
    for method, events in found.items():
        if method.startswith("control"):
            continue
        assert any("/digits" in path and path.endswith(".safetensors") for _, path in events), method
        assert data_files(events) == [], method
        assert sockets(events) == [], method


def test_shards_read_are_the_run_s_own(found):
    for method, events in found.items():
        shards = [path for event, path in events if event == "open" and path.endswith(".h5")]
        assert all(path.startswith(f"{method}/shards/") for path in shards)
