"""RepQ and ERQ on a small transformer, and what they refuse."""

import copy
import dataclasses

import pytest
import torch
from tiny_students import digits_vit
from torch import nn
from toys import image_spec, make_teacher, structured_images

from zsq.core.errors import MismatchError
from zsq.core.runtime import Runtime
from zsq.fitting.calibration import norm_batches, rows_of
from zsq.passes.reparametrization import reparametrize
from zsq.placement.layer_norms import normed_layers
from zsq.placement.sites import place
from zsq.quantizers.grids import FakeQuantizer
from zsq.quantizers.logarithmic import LogSqrt2Quantizer
from zsq.students import create, erq
from zsq.teacher.digits_vit import DigitsViT
from zsq.widths import Bits


@pytest.fixture(scope="module")
def teacher():
    """Two blocks, whose LayerNorms give channels of very different ranges and means."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DigitsViT(width=16, depth=2, hidden=24)
        for norm in network.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.weight.data = torch.logspace(-1, 1, 16)[torch.randperm(16)]
                norm.bias.data = torch.randn(16) * 3
    return dataclasses.replace(digits_vit(), name="skewed", network=network)


@pytest.fixture(scope="module")
def pixels():
    spec = digits_vit().spec
    return spec.standard_to_pixels(structured_images((24, *spec.shape)))


def fit(name, teacher, pixels, bits="W4A4", **options):
    return create(name, teacher.spec, options, Runtime()).fit(teacher, pixels, Bits.parse(bits))


@torch.no_grad()
def error(fitted, teacher, pixels):
    standard = teacher.spec.pixels_to_standard(pixels)
    return (fitted.logits(standard) - teacher.logits(standard)).square().mean().item()


def placed(teacher, bits="W4A4"):
    return place(teacher.network, teacher.example(), Bits.parse(bits), fold=True)


def test_what_reads_a_layer_norm_is_found(teacher):
    found = normed_layers(placed(teacher), teacher.example()[:1])
    read = {normed.norm: (normed.layers, normed.site.name) for normed in found}
    assert read == {
        **{f"blocks.{i}.norm1": ((f"blocks.{i}.attn.qkv",), f"blocks.{i}.attn.qkv.input") for i in (0, 1)},
        **{f"blocks.{i}.norm2": ((f"blocks.{i}.mlp.0",), f"blocks.{i}.mlp.0.input") for i in (0, 1)},
        "norm": (("head",), "head.input"),
    }
    assert all(normed.site is None for normed in normed_layers(placed(teacher, "W4A32"), teacher.example()))


@torch.no_grad()
def test_a_scale_and_a_shift_move_without_a_change_of_the_outputs(teacher, pixels):
    placement = placed(teacher)
    network, norm = placement.network, next(norm_batches(teacher.spec, pixels, "cpu"))
    before = network(norm)
    for normed in normed_layers(placement, norm[:1]):
        old = rows_of(network, normed.tensor, [norm])
        factor, shift = torch.rand(16) + 0.2, torch.randn(16)
        reparametrize(network, normed, factor, shift)
        torch.testing.assert_close(
            rows_of(network, normed.tensor, [norm]), old / factor - shift, rtol=1e-4, atol=1e-4
        )
    assert (network(norm) - before).abs().max() < 1e-5 * before.abs().max()


def test_grids_are_as_published(teacher, pixels):
    fitted = fit("repq", teacher, pixels)
    quantizers = {path: module for path, module in fitted.network.named_modules() if hasattr(module, "form")}
    attention = {path for path, module in quantizers.items() if isinstance(module, LogSqrt2Quantizer)}
    assert attention == {f"blocks.{i}.attn.matmul1.left_quantizer" for i in (0, 1)}
    for path in quantizers.keys() - attention:
        zero = quantizers[path].zero_point
        assert isinstance(quantizers[path], FakeQuantizer) and torch.equal(zero, zero.round())
        assert (zero >= 0).all() and (zero <= 15).all()
    rows = {row.name: row for row in fitted.tensors}
    assert not rows["blocks.0.attn.matmul1.left"].signed and rows["head.weight"].num_scales == 10


def test_channels_of_other_ranges_are_no_loss(teacher, pixels):
    """What one step per tensor cannot do."""
    assert error(fit("repq", teacher, pixels, "W32A4"), teacher, pixels) < 0.5 * error(
        fit("ptq", teacher, pixels, "W32A4"), teacher, pixels
    )


def test_corrections_lower_the_error(teacher, pixels):
    errors = [error(fit(name, teacher, pixels, "W3A4"), teacher, pixels) for name in ("repq", "erq")]
    assert errors[1] < errors[0]


def test_no_output_of_a_layer_is_worse_than_rounded_to_the_nearest(teacher, pixels, monkeypatch):
    seen = []
    correct = erq.ERQ._correct

    def spied(self, placement, site, layer, moments):
        before = placement.weight(site).clone()
        plain = erq.percentile_weight(before, site.bits)(before)
        module = placement.network.get_submodule(layer)
        bias = module.bias.clone()
        correct(self, placement, site, layer, moments)
        shift = module.bias - bias
        assert torch.equal(placement.get(site)(placement.weight(site)), placement.weight(site))
        seen.append(
            (moments.error(placement.weight(site), shift), moments.error(plain, torch.zeros_like(shift)))
        )

    monkeypatch.setattr(erq.ERQ, "_correct", spied)
    # With no ridge the few images are fitted as closely as they can be.
    fit("erq", teacher, pixels, "W2A4", input_ridge=1e-9, weight_ridge=1e-6)
    assert len(seen) == 9
    for learned, plain in seen:
        assert (learned <= plain * (1 + 1e-6)).all() and learned.sum() < plain.sum()


def test_an_endless_ridge_is_repq(teacher, pixels):
    made = [
        fit("repq", teacher, pixels),
        fit("erq", teacher, pixels, input_ridge=1e12, weight_ridge=1e12, most_flips=0),
    ]
    weights = [dict(each.network.named_parameters()) for each in made]
    for row in made[0].tensors:
        if row.kind == "weight":
            grids = [
                each.network.get_submodule(row.name.replace(".weight", ".weight_quantizer")) for each in made
            ]
            torch.testing.assert_close(
                *(grid(weight[row.name]) for grid, weight in zip(grids, weights, strict=True))
            )


class PostNorm(nn.Module):
    """A LayerNorm behind the addition: the next addition reads it too."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(channels, 8, 4, 4), nn.LayerNorm(8)
        self.mlp, self.head = nn.Linear(8, 8), nn.Linear(8, outputs)

    def forward(self, x):
        x = self.norm(self.stem(x).flatten(2).transpose(1, 2))
        return self.head((x + self.mlp(x)).mean(1))


class Moved(PostNorm):
    """What follows the LayerNorm depends on `how`."""

    def __init__(self, channels, outputs, how):
        super().__init__(channels, outputs)
        self.how = how

    def forward(self, x):
        x = self.norm(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(self.mlp(self.how(x)).mean(1))


MOVES = {
    "padded": lambda x: nn.functional.pad(x, (0, 0, 1, 1)),
    "flipped channels": lambda x: x.flip(-1),
    "rectified": torch.relu,
    "mixed axes": lambda x: x.transpose(1, 2).reshape(x.shape),
}
HARMLESS = {
    "rolled": lambda x: x.roll(1, 1),
    "windows": lambda x: (
        x.unflatten(1, (4, 4)).permute(0, 2, 1, 3).flatten(0, 1).unflatten(0, (-1, 4)).flatten(1, 2)
    ),
    "part": lambda x: x[:, 2:5],
    "padded by nothing": lambda x: nn.functional.pad(x, (0, 0, 0, 0)),
}


@pytest.mark.parametrize("how", [*MOVES, *HARMLESS])
def test_channels_are_followed_to_the_layer(how):
    teacher = make_teacher(lambda c, o: Moved(c, o, (MOVES | HARMLESS)[how]), image_spec())
    found = normed_layers(placed(teacher), teacher.example()[:1])
    assert [normed.norm for normed in found] == (["norm"] if how in HARMLESS else [])


@pytest.mark.parametrize("name", ["repq", "erq"])
def test_a_teacher_without_such_a_layer_norm_is_refused_in_one_line(name):
    for build, found in (
        (PostNorm, "has 1 LayerNorms, none of which feeds"),
        (None, "no LayerNorm with a scale"),
    ):
        teacher = make_teacher() if build is None else make_teacher(build)
        pixels = teacher.spec.standard_to_pixels(structured_images((4, *teacher.spec.shape)))
        with pytest.raises(
            MismatchError, match=f"student {name}: teacher toy has {found}|{found}.*use student ptq"
        ):
            fit(name, teacher, pixels)


def test_the_teacher_is_left_as_it_was(teacher, pixels):
    before = copy.deepcopy(teacher.network.state_dict())
    fit("erq", teacher, pixels)
    after = teacher.network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
