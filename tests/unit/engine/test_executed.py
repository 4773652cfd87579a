"""Which layers run, which comes last, and what enters it."""

import pytest
import torch
from torch import nn
from toys import NETWORKS, conv_bn, head, make_teacher

from zsq.core.errors import MismatchError
from zsq.engine.executed import FeatureTap, blank, executed, last_layer


class TwoHeads(nn.Module):
    """An auxiliary layer runs after the classifier, and both are declared the other way round."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.aux = nn.Linear(12, 2)
        self.body = conv_bn(channels, 12, 2)
        self.head = nn.Linear(12, outputs)

    def forward(self, x):
        pooled = self.body(x).mean((2, 3))
        logits = self.head(pooled)
        return logits + 0 * self.aux(pooled).sum()


class Tokens(nn.Module):
    """The last layer reads (N, tokens, features)."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.body = conv_bn(channels, 12, 2)
        self.head = nn.Linear(12, outputs)

    def forward(self, x):
        return self.head(self.body(x).flatten(2).transpose(1, 2)).mean(1)


def test_the_classifier_is_last_though_another_layer_runs_later():
    teacher = make_teacher(TwoHeads)
    assert last_layer(teacher.network, teacher.spec, teacher.num_outputs) == "head"
    assert last_layer(teacher.network, teacher.spec, 2) == "aux"
    assert last_layer(teacher.network, teacher.spec, 77) == "aux"


def test_order_of_execution_and_no_hook_stays():
    teacher = make_teacher(NETWORKS["plain"])
    image = blank(teacher.network, teacher.spec)
    calls = executed(teacher.network, lambda: teacher.logits(image))
    leaves = [call for call in calls if not list(call.module.children())]
    assert [call.name for call in leaves][:3] == ["0.0", "0.1", "0.2"] and leaves[-1].num_values == 5
    assert not any(module._forward_hooks for module in teacher.network.modules())


def test_a_hook_does_not_stay_after_an_error():
    teacher = make_teacher(NETWORKS["plain"])
    with pytest.raises(RuntimeError):
        executed(teacher.network, lambda: teacher.network(torch.zeros(1, 7, 3, 3)))
    assert not any(module._forward_hooks for module in teacher.network.modules())


def test_features_of_tokens_are_averaged_over_tokens():
    teacher = make_teacher(Tokens)
    images = torch.randn(3, *teacher.spec.shape)
    body = teacher.network.body
    network = make_teacher(Tokens).network
    network.load_state_dict(teacher.network.state_dict())
    tap = FeatureTap(network, teacher)
    assert tap.length == 12
    norm = teacher.spec.standard_to_norm(images)
    network(norm)
    torch.testing.assert_close(tap.take(), body(norm).mean((2, 3)))


def test_a_network_without_weights_has_no_last_layer():
    teacher = make_teacher(lambda channels, outputs: nn.Sequential(head(channels, outputs)[:2]))
    with pytest.raises(MismatchError, match="without linear layer and convolution"):
        last_layer(teacher.network, teacher.spec, 5)
