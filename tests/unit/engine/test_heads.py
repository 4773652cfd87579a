"""Losses on attention against their formulas, written out."""

import math

import pytest
import torch

from zsq.engine.attention import Block, BlockTap, Tokens
from zsq.engine.heads import (
    AttentionPriors,
    VariationTarget,
    attended,
    gaussian_entropy,
    gaussian_kernel,
    head_distance,
    head_similarities,
    head_ssim,
    kernel_entropy,
    mixture_maps,
    patch_entropies,
    patch_entropy,
)
from zsq.engine.objectives import TeacherPass, total_variation_l2

BLOCK = Block("block", 1, 4, Tokens(1, (4, 4)), Tokens(1, (4, 4)))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tap(images=3, heads=4, seed=0):
    block = Block("block", 1, heads, BLOCK.queries, BLOCK.keys)
    logits = torch.randn(images, 1, heads, 17, 17, generator=rng(seed))
    outputs = torch.randn(images, 1, heads, 17, 6, generator=rng(seed + 1))
    return BlockTap(block, logits, logits.softmax(-1), outputs)


def forward(*taps, images=None):
    images = torch.zeros(3, 1, 8, 8) if images is None else images
    return TeacherPass(images, torch.zeros(len(images), 5), [], None, blocks=taps)


def test_kernel_entropy_is_that_of_a_gaussian():
    values = torch.randn(2, 40_000, generator=rng()) * 0.3
    found = kernel_entropy(values, 0.02, 400)
    torch.testing.assert_close(found, gaussian_entropy(values), rtol=0.05, atol=0.0)
    assert gaussian_entropy(values)[0].item() == pytest.approx(
        0.5 * math.log(2 * math.pi * math.e * values[0].var().item()), rel=1e-3
    )


def test_kernel_entropy_has_the_gradient_of_its_formula():
    values = torch.rand(2, 30, generator=rng(), dtype=torch.float64).requires_grad_()
    points = torch.linspace(0, 1, 5, dtype=torch.float64) * (values.max() - values.min()) + values.min()
    points = points.detach()
    kernels = torch.exp(-0.5 * ((values[..., None] - points) / 0.1) ** 2)
    density = kernels.mean(1) / (0.1 * math.sqrt(2 * math.pi)) + 1e-4
    wanted = torch.trapezoid(-density * density.log(), points, dim=1)
    found = kernel_entropy(values, 0.1, 5)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(each.sum(), values, retain_graph=True)[0] for each in (found, wanted)]
    torch.testing.assert_close(*gradients)


def test_far_kernels_are_no_denormal_numbers():
    gaps = torch.linspace(0, 500, 5000)
    kernels = gaussian_kernel(gaps.clone())
    assert kernels.min() >= torch.finfo(torch.float32).tiny
    torch.testing.assert_close(kernels, torch.exp(-0.5 * gaps**2), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("entropy", [gaussian_entropy, lambda v: kernel_entropy(v, 0.01, 10)])
def test_patch_entropy_has_no_order_and_stays_finite(entropy):
    loss, given = patch_entropy(entropy), tap()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(16, generator=rng())])
    moved = BlockTap(BLOCK, outputs_NWHQD=given.outputs_NWHQD[torch.tensor([2, 0, 1])][..., order, :])
    torch.testing.assert_close(loss(forward(given)), loss(forward(moved)))
    constant = torch.ones_like(given.outputs_NWHQD).requires_grad_()
    value = loss(forward(BlockTap(BLOCK, outputs_NWHQD=constant)))
    value.backward()
    assert value.isfinite() and constant.grad.isfinite().all()


def direct_ssim(maps):
    """Of maps (H, P) in [0, 1], pair by pair."""
    found = torch.empty(len(maps), len(maps))
    for i, a in enumerate(maps):
        for j, b in enumerate(maps):
            means = (2 * a.mean() * b.mean() + 1e-4) / (a.mean() ** 2 + b.mean() ** 2 + 1e-4)
            covariance = ((a - a.mean()) * (b - b.mean())).mean()
            variances = a.var(correction=0) + b.var(correction=0)
            found[i, j] = means * (2 * covariance + 9e-4) / (variances + 9e-4)
    return found


def test_head_ssim_by_gram_matrices_is_the_direct_one():
    given = tap()
    found = head_ssim(given)
    assert found.shape == (3, 1, 16, 4, 4)
    for image, query in ((0, 0), (2, 15)):
        maps = given.logits_NWHQK[image, 0, :, 1 + query, 1:]
        low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
        wanted = direct_ssim((maps - low) / (high - low))
        torch.testing.assert_close(found[image, 0, query], wanted, atol=1e-6, rtol=1e-5)


def test_heads_that_see_alike_have_no_distance():
    given = tap()
    same = given.logits_NWHQK[:, :, :1].expand(-1, -1, 4, -1, -1)
    assert head_distance(forward(BlockTap(BLOCK, same))).item() == pytest.approx(0, abs=1e-6)
    assert head_distance(forward(given)).item() > 0.3
    scaled = given.logits_NWHQK * 3 - 2 * torch.rand(3, 1, 4, 17, 1, generator=rng())
    torch.testing.assert_close(head_distance(forward(BlockTap(BLOCK, scaled))), head_distance(forward(given)))
    logged = given.weights_NWHQK.log()
    torch.testing.assert_close(head_distance(forward(BlockTap(BLOCK, logged))), head_distance(forward(given)))
    alone = tap(heads=1)
    assert head_distance(forward(alone)).item() == pytest.approx(0, abs=1e-6)


def test_what_is_said_of_an_image_is_of_that_image_alone():
    given = tap()
    for figure in (patch_entropies, head_similarities):
        whole = figure([given, tap(seed=5)], 3)
        alone = figure([given.of_images(slice(1, 2)), tap(seed=5).of_images(slice(1, 2))], 1)
        assert whole.shape == (3,)
        torch.testing.assert_close(whole[1:2], alone)
    assert head_similarities([tap(heads=1)], 3).isnan().all()


def test_attention_that_is_its_prior_costs_nothing():
    given = tap()
    priors = AttentionPriors([BLOCK, BLOCK, BLOCK], 3, "cpu")
    priors.before_step(0, rng())
    assert [maps.shape for maps in priors.maps] == [(3, 1, 4, 16)] * 2
    for maps in priors.maps:
        torch.testing.assert_close(maps.sum(-1), torch.ones(3, 1, 4))
    assert priors.loss(forward(given, given, given)).item() > 0
    kept = [maps.clone() for maps in priors.maps]
    priors.before_step(1, rng(1))
    assert all(map(torch.equal, kept, priors.maps))
    mass = attended(given).sum(-1)
    for maps in priors.maps:
        maps.copy_(attended(given) / mass[..., None])
    assert priors.loss(forward(given, given, given)).item() == pytest.approx(0, abs=1e-12)


def test_deeper_blocks_count_more():
    given, priors = tap(), AttentionPriors([BLOCK, BLOCK], 3, "cpu")
    priors.before_step(0, rng())
    # 16 places, where the weight is that of 196.
    single = [
        (16 / 196 * (attended(given) - maps * attended(given).sum(-1, keepdim=True)))
        .square()
        .mean((0, 1, 3))
        .sum()
        for maps in priors.maps
    ]
    wanted = 0.5 * single[0] + single[1]
    torch.testing.assert_close(priors.loss(forward(given, given)), wanted)


def test_without_a_class_token_attention_is_the_mean_over_queries():
    block = Block("block", 1, 4, Tokens(0, (1, 17)), Tokens(0, (1, 17)))
    given = tap()
    torch.testing.assert_close(
        attended(BlockTap(block, weights_NWHQK=given.weights_NWHQK)), given.weights_NWHQK.mean(-2)
    )
    torch.testing.assert_close(attended(given), given.weights_NWHQK[..., 0, 1:])


def test_maps_are_reproducible_mixtures():
    first, again = (mixture_maps((2, 1, 3), (4, 5), 5, rng()) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (2, 1, 3, 20) and (first >= 0).all()
    assert not torch.equal(first, mixture_maps((2, 1, 3), (4, 5), 5, rng(1)))


def test_the_variation_aimed_at_follows_batch_and_size():
    small = VariationTarget(2500, 3000, (32, 3, 32, 32), "cpu")
    small.before_step(0, rng())
    assert 357 <= small.value.item() <= 429
    quarter = VariationTarget(2500, 3000, (8, 3, 32, 32), "cpu")
    quarter.before_step(0, rng())
    assert quarter.value.item() == pytest.approx(small.value.item() / 2)
    images = torch.randn(3, 1, 8, 8, generator=rng())
    given = forward(images=images)
    assert small.loss(given).item() == pytest.approx(small.value.item() - total_variation_l2(given).item())
