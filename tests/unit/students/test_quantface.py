"""QuantFace on small embedding networks with PReLU: grids, ranges, loss, and what does not move."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import conv_bn, image_spec, make_teacher, structured_images

from zsq.contract import QuantizedTensor
from zsq.core.errors import MismatchError
from zsq.core.runtime import Runtime
from zsq.placement.sites import place
from zsq.quantizers.extremes import RunningExtremes, SlopeMinMax
from zsq.quantizers.grids import FakeQuantizer
from zsq.quantizers.layers import QuantPReLU
from zsq.saved.saving import load_student, save_student
from zsq.students import create
from zsq.students.quantface import QuantFaceOptions, embedding_regression
from zsq.tasks.classify import Classify
from zsq.tasks.embed import Embed
from zsq.widths import Bits

SPEC = image_spec()


def with_prelu(channels_in, channels, stride=1, groups=1):
    conv, norm, _ = conv_bn(channels_in, channels, stride, groups)
    prelu = nn.PReLU(channels)
    nn.init.uniform_(prelu.weight, -0.1, 0.4)
    return nn.Sequential(conv, norm, prelu)


class MobileBlock(nn.Module):
    """1x1, depthwise 3x3, linear 1x1 around a shortcut."""

    def __init__(self, channels, middle):
        super().__init__()
        self.branch = nn.Sequential(
            with_prelu(channels, middle),
            with_prelu(middle, middle, groups=middle),
            nn.Conv2d(middle, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return x + self.branch(x)


def mobile(channels, outputs):
    """As MobileFaceNet: depthwise layers, no ReLU, a BatchNorm1d at the end."""
    pooled = nn.Sequential(nn.Conv2d(12, 12, 8, groups=12, bias=False), nn.BatchNorm2d(12), nn.Flatten())
    head = nn.Sequential(nn.Linear(12, outputs), nn.BatchNorm1d(outputs))
    return nn.Sequential(with_prelu(channels, 12, 2), MobileBlock(12, 16), pooled, head)


class ResidualEmbedder(nn.Module):
    """As an IResNet: BN first, a PReLU inside, the last layer on flattened maps."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.stem = with_prelu(channels, 8, 2)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.prelu, self.conv2 = nn.PReLU(8), nn.Conv2d(8, 8, 3, 2, 1, bias=False)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
        self.fc, self.features = nn.Linear(8 * 16, outputs), nn.BatchNorm1d(outputs)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv2(self.prelu(self.conv1(self.bn1(x))))
        return self.features(self.fc((y + self.shortcut(x)).flatten(1)))


BACKBONES = {"mobile": mobile, "residual": ResidualEmbedder}


def embedder(build=mobile):
    return make_teacher(build, SPEC, outputs=16, task="embed")


@pytest.fixture(scope="module")
def pixels():
    return SPEC.standard_to_pixels(structured_images((48, *SPEC.shape), seed=3))


class Log:
    def __init__(self):
        self.losses = []

    def advance(self, amount, **values):
        self.losses += [values["loss"]] if values else []


def fit(teacher, pixels, bits="W8A8", log=None, seed=0, **options):
    options = {"iterations": 10, "batch": 16, "range_iterations": 5, **options}
    student = create("quantface", teacher.spec, options, Runtime())
    return student.fit(teacher, pixels, Bits.parse(bits), seed=seed, log=log or Log())


@torch.no_grad()
def cosine(teacher, fitted, pixels):
    images = teacher.spec.pixels_to_standard(pixels)
    return F.cosine_similarity(teacher.logits(images), fitted.logits(images)).mean().item()


def test_defaults_and_what_scales_with_the_run():
    full = QuantFaceOptions.resolve("quantface", SPEC, {})
    assert (full.iterations, full.batch, full.range_iterations) == (100, 64, 50)
    assert (full.nesterov, full.momentum, full.clip_norm, full.batch_norm) == (True, 0.9, 5.0, "frozen")
    short = QuantFaceOptions.resolve("quantface", SPEC, {}, iterations=20)
    assert (short.range_iterations, short.decay_every) == (10, 18)


def test_loss_is_twice_the_missing_cosine_per_dimension():
    random = np.random.default_rng(0)
    student, teacher = (random.normal(size=(7, 128)) for _ in range(2))
    cosines = (student * teacher).sum(1) / np.linalg.norm(student, axis=1) / np.linalg.norm(teacher, axis=1)
    loss = embedding_regression(torch.from_numpy(student), torch.from_numpy(teacher))
    assert loss.item() == pytest.approx((2 * (1 - cosines) / 128).mean())
    assert embedding_regression(*[torch.from_numpy(3 * teacher)] * 2).item() == 0


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("bits", ["W8A8", "W6A6", "W4A4"])
def test_every_layer_and_slope_is_on_its_grid(backbone, bits, pixels):
    fitted = fit(embedder(BACKBONES[backbone]), pixels, bits)
    width, num_slopes = int(bits[1]), 0
    for name, module in fitted.network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.PReLU):
            weight = module.weight_quantizer(module.weight).detach()
            rows = weight[None] if isinstance(module, nn.PReLU) else weight.flatten(1)
            assert max(len(row.unique()) for row in rows) <= 2**width
            quantizer = module.weight_quantizer
            assert type(quantizer) is FakeQuantizer
            levels = (weight / quantizer.step + quantizer.zero_point).round()
            assert levels.min() >= 0 and levels.max() <= 2**width - 1
            low, high = (module.weight.detach().flatten().aminmax()) if rows.shape[0] == 1 else (None, None)
            if isinstance(module, nn.PReLU):
                num_slopes += 1
                assert QuantPReLU is type(module) and quantizer.step.numel() == 1
                span = max(high.item(), 0) - min(low.item(), 0)
                assert quantizer.step.item() == pytest.approx(span / (2**width - 1))
                row = QuantizedTensor(f"{name}.weight", "weight", width, 1, bool(low < 0))
                assert row in fitted.tensors
    assert num_slopes == (3 if backbone == "mobile" else 2)
    assert {tensor.bits for tensor in fitted.tensors} == {width}
    assert fitted.task == Embed()


def test_slopes_are_placed_on_request_alone():
    network = embedder().network
    plain = place(network, torch.zeros(2, 3, 16, 16), Bits(4, 4), fold=False)
    asked = place(network, torch.zeros(2, 3, 16, 16), Bits(4, 4), fold=False, slopes=True)
    names = [site.name for site in plain.sites]
    slopes = [site.name for site in asked.sites if site.name not in names]
    assert len(slopes) == 3 and all(asked.network.get_parameter(name).dim() == 1 for name in slopes)
    assert not place(network, torch.zeros(2, 3, 16, 16), Bits(32, 4), fold=False, slopes=True).table()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(asked.network(images), network(images))


def test_extremes_only_grow_and_then_stay():
    quantizer = RunningExtremes(4)
    batches = [torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 1.0]), torch.tensor([0.1, 0.2])]
    seen = []
    for batch in batches:
        quantizer(batch)
        seen.append((quantizer.low.item(), quantizer.high.item()))
    assert seen == [(0.0, 2.0), (-1.0, 2.0), (-1.0, 2.0)]
    quantizer.growing.fill_(False)
    out = quantizer(torch.tensor([-9.0, 9.0]))
    assert (quantizer.low.item(), quantizer.high.item()) == (-1.0, 2.0)
    np.testing.assert_allclose(out.numpy(), [-1.0, 2.0], atol=1e-6)
    settled = quantizer.settled()
    assert torch.equal(settled(torch.linspace(-2, 3, 50)), quantizer(torch.linspace(-2, 3, 50)))


def test_gradient_is_one_everywhere():
    quantizer = RunningExtremes(2)
    quantizer(torch.tensor([1.0]))
    quantizer.growing.fill_(False)
    x = torch.tensor([-3.0, 0.3, 5.0], requires_grad=True)
    (quantizer(x) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0]
    slopes = torch.tensor([0.1, 0.25, -0.2], requires_grad=True)
    SlopeMinMax(4)(slopes).sum().backward()
    assert slopes.grad.tolist() == [1.0, 1.0, 1.0]


def test_ranges_are_frozen_after_their_iterations(pixels, monkeypatch):
    """Watched at every forward pass of a fit: they move in the first 5 steps and never after."""
    seen = {}
    forward = RunningExtremes.forward

    def watched(self, x):
        out = forward(self, x)
        seen.setdefault(self.low.data_ptr(), []).append((self.low.item(), self.high.item()))
        return out

    monkeypatch.setattr(RunningExtremes, "forward", watched)
    fitted = fit(embedder(), pixels, iterations=9, range_iterations=5)
    assert seen and all(len(ranges) == 9 for ranges in seen.values())
    for ranges in seen.values():
        assert ranges[4:] == [ranges[4]] * 5
        lows, highs = zip(*ranges, strict=True)
        assert list(lows) == sorted(lows, reverse=True) and list(highs) == sorted(highs)
    assert any(ranges[0] != ranges[4] for ranges in seen.values())
    kept = {(low, high) for *_, (low, high) in seen.values()}
    steps = {
        round(module.step.item(), 6)
        for module in fitted.network.modules()
        if isinstance(module, FakeQuantizer) and module.kind == "activation"
    }
    assert steps == {round((max(high, 0) - min(low, 0)) / 255, 6) for low, high in kept}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_w8a8_is_the_teacher(backbone, pixels):
    teacher = embedder(BACKBONES[backbone])
    fitted = fit(teacher, pixels)
    assert cosine(teacher, fitted, pixels) > 0.999


def test_searched_ranges_are_fixed_and_leave_outliers_out(pixels):
    """They are the float network's on these images, narrower than its extremes, and no step moves them."""
    teacher = embedder()

    def steps(**options):
        network = fit(teacher, pixels, "W4A4", **options).network
        found = [m for m in network.modules() if isinstance(m, FakeQuantizer) and m.kind == "activation"]
        return torch.stack([quantizer.step for quantizer in found])

    searched = steps(observer="mse")
    assert torch.equal(searched, steps(observer="mse", iterations=1))
    assert (searched < steps()).all()


def test_training_brings_w4a4_nearer(pixels):
    teacher = embedder()
    start, end = (
        cosine(teacher, fit(teacher, pixels, "W4A4", iterations=steps, learning_rate=1e-3), pixels)
        for steps in (1, 60)
    )
    assert 1 - end < 0.8 * (1 - start)


def test_float_is_the_teacher_untrained(pixels):
    teacher = embedder()
    fitted = fit(teacher, pixels, "W32A32")
    assert cosine(teacher, fitted, pixels) == pytest.approx(1, abs=1e-6) and fitted.tensors == ()
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(fitted.network.state_dict()[name], value)


def test_batch_norm_follows_the_images_and_the_teacher_stays(pixels):
    teacher = embedder()
    before = copy.deepcopy(teacher.network.state_dict())
    fitted = fit(teacher, pixels, batch_norm="train")
    assert all(torch.equal(before[name], value) for name, value in teacher.network.state_dict().items())
    means = [name for name in before if name.endswith("running_mean")]
    state = fitted.network.state_dict()
    assert means and all(not torch.equal(before[name], state[name]) for name in means)
    frozen = fit(teacher, pixels).network.state_dict()
    assert all(torch.equal(before[name], frozen[name]) for name in means)
    assert not any(p.requires_grad for p in fitted.network.parameters())


def test_seed_decides(pixels):
    teacher = embedder()
    first, again, other = (fit(teacher, pixels, seed=seed).network.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_saved_student_is_the_same(pixels, tmp_path):
    teacher = embedder()
    fitted = fit(teacher, pixels, "W4A4")
    save_student(fitted, teacher, tmp_path / "face")
    loaded = load_student(tmp_path / "face")
    images = SPEC.pixels_to_standard(pixels)
    assert torch.equal(loaded.logits(images), fitted.logits(images))
    assert loaded.tensors == fitted.tensors and loaded.task == Embed()


def test_a_classifier_and_other_images_are_refused_in_one_line(pixels):
    teacher = embedder()
    with pytest.raises(MismatchError, match="has task 'classify'; expected an embedding network"):
        fit(dataclasses.replace(teacher, task=Classify()), pixels)
    with pytest.raises(MismatchError, match="images of shape"):
        fit(teacher, pixels[:, :, :8])
