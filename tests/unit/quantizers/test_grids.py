"""Fake-quantization against numpy in float64, and its gradients against the closed form and differences."""

import numpy as np
import pytest
import torch

from zsq.quantizers.grids import SMALLEST_STEP, FakeQuantizer, affine_grid, clip, fake_quantize, integer_range

ZERO = torch.tensor(0.0)


def reference(x, step, zero, lo, hi):
    x = np.asarray(x, dtype=np.float64)
    return step * (np.clip(np.rint(x / step) + zero, lo, hi) - zero)


@pytest.mark.parametrize("bits", range(2, 9))
def test_integer_range_has_all_levels(bits):
    for signed in (True, False):
        lo, hi = integer_range(bits, signed)
        assert hi - lo + 1 == 2**bits
    assert integer_range(4, True) == (-8, 7)
    assert integer_range(4, False) == (0, 15)


@pytest.mark.parametrize(("zero", "lo", "hi"), [(0, -8, 7), (0, 0, 15), (5, 0, 15)])
def test_forward_equals_float64(zero, lo, hi):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    step = 0.125  # a power of two: float32 divides exactly, so that ties agree with float64
    quantized = fake_quantize(x, torch.tensor(step), torch.tensor(float(zero)), lo, hi)
    np.testing.assert_allclose(quantized.numpy(), reference(x, step, zero, lo, hi), atol=1e-7)


def test_rounds_ties_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert fake_quantize(x, torch.tensor(1.0), ZERO, -8, 7).tolist() == [0, 2, 2, 0, -2]


def test_eight_bits_err_by_half_a_step_at_most():
    x = torch.rand(10_000, generator=torch.Generator().manual_seed(1)) * 7 - 2
    step, zero = affine_grid(x.min(), x.max(), 8)
    error = (fake_quantize(x, step, zero, 0, 255) - x).abs().max()
    # Rounding the zero point moves the range by up to half a step at either end.
    inside = (x > x.min() + step) & (x < x.max() - step)
    assert (fake_quantize(x, step, zero, 0, 255) - x)[inside].abs().max() <= step / 2 * 1.001
    assert error <= step * 1.001


def test_relu_tensor_has_zero_point_zero_and_keeps_zeros():
    step, zero = affine_grid(torch.tensor(0.3), torch.tensor(4.0), 4)
    assert zero == 0 and step == pytest.approx(4 / 15)
    assert fake_quantize(torch.zeros(3), step, zero, 0, 15).eq(0).all()


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (-3.0, -1.0), (0.0, 0.0)])
def test_zero_is_always_on_the_grid(low, high):
    step, zero = affine_grid(torch.tensor(low), torch.tensor(high), 4)
    assert step >= SMALLEST_STEP and 0 <= zero <= 15 and zero == zero.round()
    assert fake_quantize(torch.zeros(1), step, zero, 0, 15) == 0


@pytest.mark.parametrize(("lo", "hi"), [(-2, 1), (-8, 7), (0, 15)])
def test_step_gradient_is_the_closed_form(lo, hi):
    step = torch.tensor(0.3, requires_grad=True)
    x = torch.tensor([0.31, 0.1, -0.13, 50.0, -50.0, 0.44], requires_grad=True)
    v = x.detach().double().numpy() / 0.3
    for index in range(len(x)):
        (gradient,) = torch.autograd.grad(fake_quantize(x, step, ZERO, lo, hi)[index], step)
        expected = hi if v[index] > hi else lo if v[index] < lo else np.rint(v[index]) - v[index]
        assert gradient.item() == pytest.approx(expected, abs=1e-5)
    (through,) = torch.autograd.grad(fake_quantize(x, step, ZERO, lo, hi).sum(), x)
    np.testing.assert_array_equal(through.numpy(), ((v >= lo) & (v <= hi)).astype(np.float32))


def test_step_gradient_respects_the_zero_point():
    step = torch.tensor(0.5, requires_grad=True)
    for value, expected in ((100.0, 15 - 3), (-100.0, 0 - 3)):
        (gradient,) = torch.autograd.grad(
            fake_quantize(torch.tensor(value), step, torch.tensor(3.0), 0, 15), step
        )
        assert gradient.item() == expected


def test_step_gradient_equals_differences_where_the_function_is_smooth():
    """Clipped values follow the step exactly; inside, d(s round(x / s))/ds = round(x / s) off the jumps."""
    x = torch.tensor([90.0, -90.0], dtype=torch.float32)
    for index in range(2):
        step = torch.tensor(0.37, requires_grad=True)
        (gradient,) = torch.autograd.grad(fake_quantize(x, step, ZERO, -8, 7)[index], step)
        above, below = (reference(x[index], 0.37 + d, 0, -8, 7) for d in (1e-6, -1e-6))
        assert gradient.item() == pytest.approx((above - below) / 2e-6, rel=1e-6)


def test_per_channel_gradient_sums_over_each_channel_and_is_scaled():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, 3, 2, 2, generator=generator)
    step = (torch.rand(4, 1, 1, 1, generator=generator) * 0.3 + 0.1).requires_grad_()
    weight = torch.randn(4, 3, 2, 2, generator=generator)
    (fake_quantize(x, step, torch.zeros(4, 1, 1, 1), -2, 1, 0.25) * weight).sum().backward()
    v = (x / step.detach()).double().numpy()
    each = np.where(v > 1, 1, np.where(v < -2, -2, np.rint(v) - v)) * weight.numpy()
    np.testing.assert_allclose(
        step.grad.numpy().ravel(), 0.25 * each.sum(axis=(1, 2, 3)), rtol=1e-4, atol=1e-5
    )


def test_quantizer_holds_buffers_until_learned():
    fixed = FakeQuantizer(torch.tensor(0.1), ZERO, 0, 15, "activation")
    learned = FakeQuantizer(torch.tensor(0.1), ZERO, 0, 15, "activation", learned=True)
    assert not list(fixed.parameters()) and set(fixed.state_dict()) == {"step", "zero_point"}
    assert [name for name, _ in learned.named_parameters()] == ["step"]
    assert set(learned.state_dict()) == {"step", "zero_point"}
    x = torch.randn(5, 3)
    torch.testing.assert_close(fixed(x), learned(x).detach())


def test_gradient_scale_counts_weights_and_features_per_image():
    weights = FakeQuantizer(torch.ones(8, 1, 1, 1), torch.zeros(8, 1, 1, 1), -8, 7, "weight", learned=True)
    assert weights.gradient_scale(torch.zeros(8, 4, 3, 3)) == pytest.approx((8 * 36 * 7) ** -0.5)
    activations = FakeQuantizer(torch.tensor(1.0), ZERO, 0, 15, "activation", learned=True)
    assert activations.gradient_scale(torch.zeros(32, 4, 3, 3)) == pytest.approx((36 * 15) ** -0.5)


def test_step_never_falls_below_the_guard():
    quantizer = FakeQuantizer(torch.tensor(-1.0), ZERO, 0, 15, "activation", learned=True)
    assert quantizer.step == SMALLEST_STEP
    with torch.no_grad():
        quantizer.step.fill_(-3.0)
    assert torch.isfinite(quantizer(torch.randn(10))).all()


def test_arithmetic_is_fp32_under_autocast():
    quantizer = FakeQuantizer(torch.tensor(0.1), ZERO, 0, 255, "activation")
    with torch.autocast("cpu", torch.bfloat16):
        assert quantizer(torch.randn(4).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("ends", [(0.0, 1.0), (torch.zeros(2, 1), torch.ones(2, 1))])
def test_the_gradient_of_a_cut_is_one_at_its_ends(ends):
    """In any version of torch: `torch.clamp` changed there."""
    x = torch.tensor([[-1.0, 0.0, 0.5, 1.0, 2.0]]).repeat(2, 1).requires_grad_()
    cut = clip(x, *ends)
    assert torch.equal(cut, x.detach().clamp(0, 1))
    cut.sum().backward()
    assert torch.equal(x.grad, torch.tensor([[0.0, 1, 1, 1, 0]]).repeat(2, 1))
