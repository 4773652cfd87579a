"""Generator networks against torch's own layers, and where their weights come from."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import image_spec

from zsq.engine.latent import (
    BatchNorm,
    LatentGenerator,
    LatentNetwork,
    UpsampledConvolution,
    allocated,
    initialise,
)

SHAPE = (3, 5, 4, 6)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def filled(module, seed=0):
    """Parameters of every module drawn anew, so that none is at its neutral start."""
    for parameter in module.parameters():
        parameter.data = drawn(parameter.shape, seed)
    return module


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 4, 3, 5), (1, 4, 8, 8)])
def test_upsampled_convolution_is_enlargement_then_convolution(shape):
    convolution = filled(UpsampledConvolution(4, 3))
    x = drawn(shape, 1).requires_grad_()
    plain = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), *convolution.parameters(), padding=1)
    found = convolution(x)
    torch.testing.assert_close(found, plain)
    upstream = drawn(found.shape, 2)
    inputs = [x, *convolution.parameters()]
    wanted = torch.autograd.grad(plain, inputs, upstream)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, upstream), wanted)


def normalised(x, epsilon):
    mean, var = (getattr(x, moment)((0, 2, 3), keepdims=True) for moment in ("mean", "var"))
    return (x - mean) / np.sqrt(var + epsilon)


@pytest.mark.parametrize("epsilon", [1e-5, 0.8])
def test_batch_norm_against_numpy(epsilon):
    norm, x = filled(BatchNorm(5, epsilon)), drawn(SHAPE, 1)
    scale, shift = (p.detach().numpy().reshape(1, 5, 1, 1) for p in norm.parameters())
    np.testing.assert_allclose(norm(x).detach(), normalised(x.numpy(), epsilon) * scale + shift)
    bare = BatchNorm(5, epsilon, affine=False)
    assert not list(bare.parameters())
    np.testing.assert_allclose(bare(x), normalised(x.numpy(), epsilon))


def test_conditional_batch_norm_scales_each_image_by_its_class():
    norm, x = filled(BatchNorm(5, num_classes=4)), drawn(SHAPE, 1)
    classes = torch.tensor([2, 0, 2])
    found = norm(x, F.one_hot(classes, 4).double()).detach()
    plain = normalised(x.numpy(), 1e-5)
    for image, label in enumerate(classes):
        scale, shift = (p[label].detach().numpy().reshape(5, 1, 1) for p in norm.parameters())
        np.testing.assert_allclose(found[image], plain[image] * scale + shift)


def test_superposed_batch_norm_is_a_convex_combination():
    norm, x = BatchNorm(5, num_classes=4).double(), drawn(SHAPE, 1)
    weights = drawn((3, 4), 2).softmax(1)
    torch.testing.assert_close(norm(x, weights), BatchNorm(5, affine=False)(x))
    filled(norm)
    singles = torch.stack([norm(x, F.one_hot(torch.full((3,), k), 4).double()) for k in range(4)])
    mixed = (weights.T[..., None, None, None] * singles).sum(0)
    torch.testing.assert_close(norm(x, weights), mixed)


def test_one_value_per_channel_is_finite():
    norm = BatchNorm(2, affine=False)
    x = torch.ones(1, 2, 1, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm(x).sum(), x)
    assert not norm(x).any() and gradient.isfinite().all()


@pytest.mark.parametrize(("size", "millions"), [(32, 2.2), (224, 103.2)])
def test_published_sizes(size, millions):
    with torch.device("meta"):
        network = LatentNetwork(image_spec(size=(size, size)), 256)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 11), (16, 24)])
def test_images_have_the_size_asked_for_and_standard_moments(size):
    network = LatentNetwork(image_spec(channels=2, size=size), 8)
    images = network(torch.randn(64, 8, generator=rng()))
    assert images.shape == (64, 2, *size)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.var((0, 2, 3), correction=0), torch.ones(2), atol=1e-3, rtol=0)


def test_weights_are_torchs_distributions_from_the_stream_alone():
    state = torch.random.get_rng_state()
    network = allocated(lambda: nn.Sequential(LatentNetwork(image_spec(), 64), nn.Embedding(300, 20)), "cpu")
    initialise(network, rng())
    assert torch.equal(torch.random.get_rng_state(), state)
    linear, convolution = network[0][0].linear, network[0][2]
    for layer, fan_in in ((linear, 64), (convolution, 128 * 9)):
        bound = fan_in**-0.5
        values = torch.cat([layer.weight.flatten(), layer.bias]).detach()
        assert values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert abs(values.mean().item()) < 0.03 * bound
    assert network[1].weight.std().item() == pytest.approx(1, abs=0.05)
    first = [p.clone() for p in network.parameters()]
    filled(network)
    initialise(network, rng())
    assert all(torch.equal(p, q.to(p.dtype)) for p, q in zip(first, network.parameters(), strict=True))
    initialise(network, rng(1))
    assert not torch.equal(first[0], linear.weight)


def test_latent_generator_starts_anew_from_the_stream():
    made = LatentGenerator(image_spec(), 3, "cpu", 8, rate=0.1, network_rate=0.01)
    made.reset(rng())
    start = made().detach()
    vectors, network = made.groups()
    assert (vectors.rate, network.rate) == (0.1, 0.01)
    assert {id(t) for t in (*vectors.tensors, *network.tensors)} == {id(p) for p in made.parameters()}
    made().square().sum().backward()
    for parameter in made.parameters():
        parameter.data += 1
    made.reset(rng())
    assert torch.equal(made(), start)
    made.reset(rng(1))
    assert not torch.equal(made(), start)
