"""A teacher is refused by a method's facts, and the message names what works on it."""

import pytest
import torch
from torch import nn
from toys import as_detector, make_teacher, with_attention, without_bn

from zsq import generators
from zsq.core.errors import MismatchError, NoAttentionError, NoBatchNormError
from zsq.engine.suitability import suited, suits
from zsq.generators import METHODS, require


class LayerNormed(nn.Module):
    def __init__(self, channels, outputs):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 8, 3, 2), nn.LayerNorm(8)
        self.head = nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(self.norm(self.conv(x).mean((2, 3))))


class OddArguments(nn.Module):
    """An operation whose moments are known of one activation, with two."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 8, 3, 2), nn.Linear(8, outputs)

    def forward(self, x):
        features = self.conv(x).mean((2, 3))
        return self.head(features.sigmoid().pow(features))


@pytest.mark.parametrize("build", [LayerNormed, OddArguments])
def test_where_nothing_follows_from_the_weights_what_asks_nothing_is_named(build):
    teacher = make_teacher(build)
    for name in ("dsg", "gzsq", "gzsq_moment"):
        with pytest.raises(
            (NoBatchNormError, MismatchError), match=r"this teacher suits leaves, noise, ce_tv$"
        ):
            require(name, teacher)
    require("noise", teacher)


def test_who_suits_follows_from_the_facts():
    plain, faces, bare = make_teacher(), make_teacher(task="embed"), make_teacher(without_bn)
    detector, transformer = as_detector(plain), with_attention(bare)
    for cls in METHODS.values():
        missing = cls.facts.needs_boxes or cls.facts.needs_attention
        assert suits(plain, cls.facts) == (not missing)
        assert suits(faces, cls.facts) == (not (cls.facts.needs_labels or missing))
        assert suits(bare, cls.facts) == (not (cls.facts.needs_batch_norm or missing))
        assert suits(detector, cls.facts) == (not (cls.facts.needs_labels or cls.facts.needs_attention))
        unsuited = cls.facts.needs_batch_norm or cls.facts.needs_boxes or cls.facts.needs_moments
        assert suits(transformer, cls.facts) == (not unsuited)


def test_methods_that_read_attention_are_named_first_where_there_is_no_batch_norm():
    with pytest.raises(
        NoBatchNormError, match=r"this teacher suits mimiq, psaq, fdd, sardfq, leaves, noise, ce_tv$"
    ):
        require("dgh", with_attention(make_teacher(without_bn)))
    with pytest.raises(NoAttentionError, match=r"which psaq reads; .* suits leaves, noise, gzsq"):
        require("psaq", make_teacher(without_bn))


def test_of_a_teacher_with_both_one_family_is_named_first():
    facts = {name: cls.facts for name, cls in METHODS.items()}
    names = suited(with_attention(make_teacher()), facts)
    assert names.index("dgh") < names.index("zeroq") < names.index("mimiq") < names.index("noise")


def test_refusal_leaves_no_trace_on_the_teacher():
    teacher = make_teacher(LayerNormed)
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    with pytest.raises(NoBatchNormError):
        require("dgh", teacher)
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())
    assert not any(module._forward_hooks for module in teacher.network.modules())


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_a_forward_without_gradients_suits_only_methods_that_ask_nothing(switched_off):
    """It would leave images as they began, without a word."""

    class Careful(nn.Sequential):
        @switched_off()
        def forward(self, images):
            return super().forward(images)

    teacher = make_teacher(lambda channels, outputs: Careful(without_bn(channels, outputs)))
    fit = [name for name, reason in generators.suited(teacher).items() if reason is None]
    assert {"leaves", "noise"} <= set(fit) and "ce_tv" not in fit
    require("leaves", teacher)
    with pytest.raises(MismatchError, match="no gradient of its images, which ce_tv follows"):
        require("ce_tv", teacher)
