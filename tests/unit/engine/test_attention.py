"""Attention is found in the captured graph whichever code computed it, and what is read of it is right."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models.swin_transformer import SwinTransformer
from torch import nn
from toys import image_spec, make_teacher, with_attention, without_bn

from zsq.contract import Teacher
from zsq.core.errors import NoAttentionError
from zsq.engine.attention import AttentionTeacher, Tokens, require_attention
from zsq.teacher import load_teacher

PARTS = ("logits", "weights", "outputs")
SPEC = image_spec(size=(32, 32))


class Block(nn.Module):
    """One attention of two heads of width 4; a class token; `attend` says how it is computed."""

    def __init__(self, attend):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.qkv, self.proj, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 5)
        self.attend = attend

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x[:, 0])


class Encoder(nn.Module):
    """torch's own encoder layer, which has a fast path around everything; or its attention with weights."""

    def __init__(self, layer, **options):
        super().__init__()
        self.embed, self.layer, self.options = nn.Conv2d(3, 8, 8, 8), layer, options
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = self.layer(x) if not self.options else self.layer(x, x, x, **self.options)[0]
        return self.head(x.mean(1))


def explicit(q, k, v):
    return (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v


def transposed(q, k, v):
    weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
    return (v.transpose(-2, -1) @ weights.transpose(-2, -1)).transpose(-2, -1)


def einsum(q, k, v):
    weights = torch.einsum("bhid,bhjd->bhij", q, k).mul(0.5).softmax(dim=3)
    return torch.einsum("bhij,bhjd->bihd", weights, v).transpose(1, 2)


NETWORKS = {
    "explicit": lambda: Block(explicit),
    "fused": lambda: Block(F.scaled_dot_product_attention),
    "transposed": lambda: Block(transposed),
    "einsum": lambda: Block(einsum),
    "mha": lambda: Encoder(nn.MultiheadAttention(8, 2, batch_first=True), need_weights=False),
    "mha-weights": lambda: Encoder(nn.MultiheadAttention(8, 2, batch_first=True), need_weights=True),
    "encoder-layer": lambda: Encoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    "timm-vit": lambda: timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5
    ),
    "timm-swin": lambda: SwinTransformer(
        img_size=32, patch_size=2, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4, num_classes=5
    ),
    "torchvision-swin": lambda: torchvision.models.SwinTransformer(
        [4, 4], 8, [2], [2], [4, 4], num_classes=5
    ),
}
WINDOWED = {"timm-swin": 16, "torchvision-swin": 4}


def teacher_of(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Teacher("toy", build(), SPEC, 5, "0" * 64)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_attention_is_read_and_changes_no_output(name):
    teacher = teacher_of(NETWORKS[name])
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    tapped = AttentionTeacher(teacher, PARTS)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    outputs, _ = tapped(images)
    torch.testing.assert_close(outputs, teacher.logits(images), atol=1e-5, rtol=0)
    taps = tapped.take()
    assert len(taps) == (2 if "timm" in name or "swin" in name else 1) and not tapped.take()
    for tap in taps:
        block, weights = tap.block, tap.weights_NWHQK
        assert block.heads == 2 and block.windows == WINDOWED.get(name, 1)
        queries = block.queries.prefix + block.queries.places
        assert weights.shape == (3, block.windows, 2, queries, queries)
        assert tap.logits_NWHQK.shape == weights.shape
        assert tap.outputs_NWHQD.shape[:-1] == weights.shape[:-1]
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        for part in (tap.logits_NWHQK, weights, tap.outputs_NWHQD):
            (gradient,) = torch.autograd.grad(part.square().sum(), images, retain_graph=True)
            assert gradient.isfinite().all() and gradient.any()
    assert all(torch.equal(value, before[key]) for key, value in teacher.network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.network.modules())


def test_logits_weights_and_outputs_belong_together():
    """Also where the code transposes them: its own numbers, computed here from the layers."""
    for attend in (explicit, transposed, einsum, F.scaled_dot_product_attention):
        teacher = teacher_of(lambda attend=attend: Block(attend))
        tapped = AttentionTeacher(teacher, PARTS)
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        tapped(images)
        (tap,) = tapped.take()
        seen = {}
        network = Block(lambda q, k, v, seen=seen: seen.update(q=q, k=k, v=v) or explicit(q, k, v))
        network.load_state_dict(teacher.network.state_dict())
        network(SPEC.standard_to_norm(images))
        wanted = (0.5 * seen["q"] @ seen["k"].mT).softmax(-1)
        torch.testing.assert_close(tap.weights_NWHQK[:, 0], wanted)
        torch.testing.assert_close(tap.outputs_NWHQD[:, 0], wanted @ seen["v"])
        # Scaled or not; not by division, which near zero shows how the processor rounds.
        products, logits = seen["q"] @ seen["k"].mT, tap.logits_NWHQK[:, 0]
        torch.testing.assert_close(logits, products * (logits.std() / products.std()))
        assert tap.block.queries == tap.block.keys == Tokens(1, (4, 4))


def test_chunks_give_what_all_images_give():
    teacher = with_attention(make_teacher())
    tapped = AttentionTeacher(teacher, PARTS)
    images = torch.randn(5, 3, 16, 16, requires_grad=True)

    def run():
        outputs, _ = tapped(images)
        taps = tapped.take()
        loss = outputs.square().sum() + sum(tap.outputs_NWHQD.square().sum() for tap in taps)
        return outputs, taps, torch.autograd.grad(loss, images)[0]

    whole = run()
    tapped.in_chunks.most = 2
    for ours, theirs in zip(run(), whole, strict=True):
        if isinstance(ours, list):
            ours, theirs = ours[1].logits_NWHQK, theirs[1].logits_NWHQK
        torch.testing.assert_close(ours, theirs)


def flat(channels, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, outputs), nn.Softmax(1))


@pytest.mark.parametrize("build", [without_bn, flat])
def test_no_attention_is_a_typed_error(build):
    with pytest.raises(NoAttentionError, match=r"has no attention that zsq can read; .* which psaq reads"):
        require_attention(make_teacher(build), "psaq")


def test_attention_that_is_not_understood_is_named():
    """Heads that are mixed between the products, and a softmax over queries."""

    def columns(q, k, v):
        return (q @ k.mT).softmax(-2) @ v

    with pytest.raises(NoAttentionError, match="no attention that zsq can read"):
        require_attention(teacher_of(lambda: Block(columns)), "psaq")


@pytest.mark.parametrize(
    ("count", "size", "windowed", "tokens"),
    [
        (197, (224, 224), False, Tokens(1, (14, 14))),
        (198, (224, 224), False, Tokens(2, (14, 14))),
        (201, (224, 224), False, Tokens(5, (14, 14))),
        (196, (224, 224), False, Tokens(0, (14, 14))),
        (49, (224, 320), True, Tokens(0, (7, 7))),
        (11, (8, 20), False, Tokens(1, (2, 5))),
        (63, (63,), False, Tokens(0, (1, 63))),
    ],
)
def test_tokens_follow_from_their_number(count, size, windowed, tokens):
    assert Tokens.of(count, size, windowed) == tokens


def test_the_shipped_transformer_has_a_class_token_and_places():
    tapped = AttentionTeacher(load_teacher("embedded:digits-vit"), ())
    assert {block.queries for block in tapped.blocks} == {Tokens(1, (8, 8))}
    assert [block.name for block in tapped.blocks] == [f"blocks.{index}.attn" for index in range(5)]
