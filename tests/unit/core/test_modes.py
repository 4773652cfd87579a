"""What a caller switched in torch changes nothing that zsq computes, and is the same afterwards."""

from contextlib import contextmanager

import pytest
import torch

import zsq

DIGITS = "embedded:digits"


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        assert torch.get_default_dtype() == torch.float64
        torch.set_default_dtype(torch.float32)


SWITCHED = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default_dtype": default_dtype,
    "default_device": lambda: torch.device("meta"),
}


def made(folder):
    """Images, and a student that is trained on them."""
    images = zsq.ShardDataset(zsq.generate(DIGITS, "zeroq", count=4, iterations=2, out=folder))
    student = zsq.quantize(DIGITS, folder, "lsq-kd", "W4A4", set={"iterations": 2, "batch": 4})
    return images.pixels(), student.fitted


def outputs(images, student):
    return student.logits(student.spec.pixels_to_standard(images))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return made(tmp_path_factory.mktemp("usual") / "run")


@pytest.mark.parametrize("name", SWITCHED)
def test_images_and_students_are_the_same(name, usual, tmp_path):
    with SWITCHED[name]():
        before = torch.is_grad_enabled()
        images, student = made(tmp_path / "run")
        assert torch.is_grad_enabled() == before
    assert torch.equal(images, usual[0])
    assert torch.equal(outputs(images, student), outputs(*usual))
