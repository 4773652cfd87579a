import pytest
import torch

from zsq.teacher import load_teacher
from zsq.teacher.digits import load_digits_images


@pytest.fixture(scope="session")
def digits():
    return load_teacher("embedded:digits")


@pytest.fixture(scope="session")
def images():
    """256 training images, uint8."""
    return load_digits_images("train")[0][:256]


@pytest.fixture(scope="session")
def test_set():
    return load_digits_images("test")


@pytest.fixture(scope="session")
def accuracy(test_set):
    """Points on the test split."""
    pixels, labels = test_set

    @torch.no_grad()
    def measure(model):
        logits = model.logits(model.spec.pixels_to_standard(pixels))
        return 100 * (logits.argmax(dim=1) == labels).float().mean().item()

    return measure
