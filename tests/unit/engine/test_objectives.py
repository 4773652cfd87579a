"""Loss terms against numpy and finite differences."""

import numpy as np
import pytest
import torch

from zsq.engine.objectives import (
    TeacherPass,
    batch_norm_l2,
    bn_alignment,
    cross_entropy,
    input_alignment,
    mean_image_norm,
    output_range,
    total_variation_l2,
)
from zsq.engine.statistics import Alignment, input_sums, layer_sums


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(3, 2, 5, 4))


def forward(images, logits=None, targets=None, layers=()):
    def tensor(values):
        return None if values is None else torch.as_tensor(values)

    return TeacherPass(tensor(images), tensor(logits), layers, tensor(targets))


def test_cross_entropy_takes_soft_targets():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(4, 6)), rng.dirichlet(np.ones(6), 4)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = -(targets * log_softmax).sum(1).mean()
    np.testing.assert_allclose(cross_entropy(forward(np.zeros(1), logits, targets)), wanted)


def test_total_variation_is_four_norms_of_the_whole_batch(images):
    def shifted(down, right):
        """All pairs of a pixel and the one `down` rows below it and `right` columns beside it."""
        height, width = images.shape[2:]
        return [
            images[:, :, y + down, x + right] - images[:, :, y, x]
            for y in range(height)
            for x in range(width)
            if 0 <= y + down < height and 0 <= x + right < width
        ]

    norms = [np.sqrt(np.square(shifted(*step)).sum()) for step in ((0, 1), (1, 0), (1, 1), (1, -1))]
    np.testing.assert_allclose(total_variation_l2(forward(images)), sum(norms))


def test_total_variation_of_constant_images_is_zero_with_a_finite_gradient():
    constant = torch.full((2, 3, 4, 4), 0.7, requires_grad=True)
    loss = total_variation_l2(forward(constant))
    (gradient,) = torch.autograd.grad(loss, constant)
    assert loss < 1e-5 and gradient.isfinite().all()


def test_norms_of_images(images):
    wanted = np.sqrt(np.square(images).sum((1, 2, 3))).mean()
    np.testing.assert_allclose(mean_image_norm(forward(images)), wanted)
    np.testing.assert_allclose(batch_norm_l2(forward(images)), np.sqrt(np.square(images).sum()))


@pytest.mark.parametrize("term", [total_variation_l2, mean_image_norm, batch_norm_l2])
def test_gradients_of_image_terms(images, term):
    x = torch.from_numpy(images).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: term(forward(values)), x)


def test_gradient_of_cross_entropy():
    rng = np.random.default_rng(0)
    logits, targets = torch.from_numpy(rng.normal(size=(2, 3))), rng.dirichlet(np.ones(3), 2)
    assert torch.autograd.gradcheck(
        lambda values: cross_entropy(forward(np.zeros(1), values, targets)), logits.requires_grad_()
    )


def test_the_highest_and_the_lowest_output_get_a_gradient():
    """Of torch.aminmax, which says the same, torch 2.10 and 2.11 have no derivative."""
    logits = torch.tensor([[1.0, 4.0, -2.0], [0.5, 0.25, 3.0]], requires_grad=True)
    output_range(forward(np.zeros(1), logits)).backward()
    assert logits.grad.tolist() == [[0, -0.5, 0.5], [0, 0.5, -0.5]]


def test_alignments_read_the_layers_or_the_viewed_images(images):
    x = torch.from_numpy(images)
    layers = [layer_sums(x, torch.ones(2, dtype=x.dtype), torch.ones(2, dtype=x.dtype))]
    seen = forward(images, layers=layers)
    for alignment in (Alignment("sample"), Alignment("batch", distance="norm")):
        assert torch.equal(bn_alignment(alignment)(seen), alignment(layers))
        assert torch.equal(input_alignment(alignment)(seen), alignment([input_sums(x)]))
        assert bn_alignment(alignment)(seen) != input_alignment(alignment)(seen)
