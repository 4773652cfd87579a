"""The shipped transformer: its accuracy, its size and what it is made of."""

import torch
from torch import nn

from zsq.graph import capture
from zsq.teacher import load_teacher
from zsq.teacher.digits import load_digits_images
from zsq.teacher.digits_vit import EXPECTED_ACCURACY, WEIGHTS_PATH


def test_shipped_weights_name_97_percent_of_the_test_digits():
    teacher = load_teacher("embedded:digits-vit")
    pixels, labels = load_digits_images("test")
    found = teacher.network(teacher.spec.pixels_to_norm(pixels)).argmax(1)
    accuracy = 100 * (found == labels).double().mean().item()
    assert accuracy >= 97
    assert abs(accuracy - EXPECTED_ACCURACY) < 0.3


def test_the_file_is_small_and_the_network_has_no_batch_norm():
    assert WEIGHTS_PATH.stat().st_size < 200_000
    modules = list(load_teacher("embedded:digits-vit").network.modules())
    assert any(isinstance(module, nn.LayerNorm) for module in modules)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)


def test_the_captured_transformer_computes_the_same():
    network = load_teacher("embedded:digits-vit").network
    images = torch.randn(2, 1, 32, 32)
    found, expected = capture(network, images)(images), network(images)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
