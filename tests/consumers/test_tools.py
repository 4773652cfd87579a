"""Each tool, where it is installed, takes two networks; and the committed table is whole."""

import json
import sys
from importlib.util import find_spec

import pytest
import torch
from commands import REPOSITORY
from test_docs import TOOLS
from torchvision.models import mobilenet_v2

import zsq
from zsq.widths import Bits

sys.path.append(str(REPOSITORY / "benchmarks"))
import consumer_tools

QUANTIZERS = sorted(set(consumer_tools.TOOLS) - {"mct-gptq"})
SOURCES = {"real", "deepinversion", "dsg", "noise"}


def rows(tool):
    table = json.loads((REPOSITORY / "benchmarks" / "results" / "consumers.json").read_text())
    return [row for row in table["rows"] if row["tool"] == tool]


@pytest.mark.parametrize("tool", QUANTIZERS)
def test_every_cell_is_measured(tool):
    _, packages, widths = consumer_tools.TOOLS[tool]
    measured = {(row["network"], row["bits"], row["source"]) for row in rows(tool)}
    wanted = {("resnet20", bits, source) for bits in widths for source in SOURCES}
    assert measured == wanted | {("mobilenet_v2", "W8A8", "noise")}
    pins = (REPOSITORY / "benchmarks" / "consumers" / f"{tool}.txt").read_text().lower().replace("_", "-")
    for row in rows(tool):
        assert all(f"{name}=={row['versions'][name]}\n" in pins for name in packages)


@pytest.mark.parametrize("tool", QUANTIZERS)
def test_synthetic_images_are_within_half_a_point_of_real_ones_at_eight_bits(tool):
    accuracy = {
        row["source"]: row["accuracy"] for row in rows(tool) if row["bits"] == "W8A8" and row["accuracy"]
    }
    assert accuracy["real"] - accuracy["deepinversion"] < 0.5


def test_what_trains_on_the_images_tells_noise_from_them():
    accuracy = {row["source"]: row["accuracy"] for row in rows("mct-gptq")}
    assert set(accuracy) == SOURCES
    assert accuracy["noise"] < accuracy["deepinversion"] - 5 and accuracy["noise"] < accuracy["real"] - 5


@pytest.mark.consumers
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
@pytest.mark.parametrize("tool", QUANTIZERS)
def test_the_tool_takes_the_network(tool, name, tmp_path, data_folder):
    if find_spec(TOOLS[tool]) is None:
        pytest.skip(f"{TOOLS[tool]} is not installed: use the environment of benchmarks/consumers/{tool}.txt")
    weights = data_folder / "cifar10_jpeg" / "resnet20.pt"
    teacher = zsq.load_teacher("cifar10:resnet20", weights)
    shards = zsq.generate("cifar10:resnet20", "noise", weights=weights, count=16, out=tmp_path / "noise")
    network = (
        teacher.network if name == "resnet20" else mobilenet_v2(num_classes=10).eval().requires_grad_(False)
    )
    predict = consumer_tools.TOOLS[tool][0](network, teacher.spec, shards, Bits.parse("W8A8"))
    images = teacher.spec.pixels_to_norm(
        zsq.load_images(data_folder / "cifar10_jpeg" / "test5000.zip", teacher.spec, 100).pixels
    )
    with torch.no_grad():
        logits = predict(images)
        assert logits.shape == (100, 10) and logits.isfinite().all()
        # Logits of random weights hardly differ between classes, so only a trained network's can be compared.
        if name == "resnet20":
            assert (logits.argmax(1) == network(images).argmax(1)).double().mean() > 0.8
