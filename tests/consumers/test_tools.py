"""Each tool, where it is installed, takes two networks, and synthetic images serve it as real ones do."""

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

QUANTIZERS = sorted(name for name in consumer_tools.TOOLS if "-" not in name)


def need(tool):
    if find_spec(TOOLS[tool]) is None:
        pytest.skip(f"{TOOLS[tool]} is not installed: use the environment of benchmarks/consumers/{tool}.txt")


@pytest.fixture(scope="module")
def digits():
    return zsq.load_teacher("embedded:digits")


@pytest.fixture(scope="module")
def sources(digits, tmp_path_factory):
    """64 images of each source."""
    folder = tmp_path_factory.mktemp("sources")
    made = {
        method: zsq.generate("embedded:digits", method, count=64, iterations=100, out=folder / method)
        for method in ("deepinversion", "noise")
    }
    return {"real": zsq.load_images("embedded:digits:train", digits.spec, 64), **made}


def accuracy(name, digits, images, bits):
    """On the test images, in per cent."""
    test = zsq.load_images("embedded:digits:test", digits.spec)
    predict = consumer_tools.TOOLS[name][0](digits.network, digits.spec, images, Bits.parse(bits))
    with torch.no_grad():
        logits = predict(digits.spec.pixels_to_norm(test.pixels))
    return 100 * (logits.argmax(1) == test.labels).double().mean().item()


@pytest.mark.consumers
@pytest.mark.parametrize("tool", QUANTIZERS)
def test_at_eight_bits_synthetic_images_do_as_well_as_real_ones(tool, digits, sources):
    need(tool)
    real, synthetic = (accuracy(tool, digits, sources[name], "W8A8") for name in ("real", "deepinversion"))
    assert real > 97 and real - synthetic < 1


@pytest.mark.consumers
@pytest.mark.slow
def test_what_trains_on_the_images_tells_noise_from_them(digits, sources):
    need("mct")
    real, synthetic, noise = (
        accuracy("mct-gptq", digits, sources[name], "W2A8") for name in ("real", "deepinversion", "noise")
    )
    assert noise < synthetic - 5 and noise < real - 5


def test_every_package_of_a_tool_is_pinned():
    for name, (_, packages, _) in consumer_tools.TOOLS.items():
        path = REPOSITORY / "benchmarks" / "consumers" / f"{name.split('-')[0]}.txt"
        pins = path.read_text().lower().replace("_", "-")
        assert all(f"\n{package}==" in pins for package in packages), name


@pytest.mark.consumers
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
@pytest.mark.parametrize("tool", QUANTIZERS)
def test_the_tool_takes_the_network(tool, name, tmp_path, data_folder):
    need(tool)
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
