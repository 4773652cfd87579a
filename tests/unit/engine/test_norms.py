"""Stored statistics are found wherever a network keeps them, and what is put there computes the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import image_spec, make_teacher
from user_networks import FunctionalNorm, Normed

from zsq.core.errors import NoBatchNormError, UntraceableError
from zsq.engine.norms import batch_norms, calls_batch_norm, count_norms, private_copy, stores_any
from zsq.engine.statistics import TappedTeacher, mean_gap_and_var


def settled(network):
    """Statistics and scales that no layer starts from."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*network.named_buffers(), *network.named_parameters()]:
        if "features" in name and tensor.dim() == 1:
            tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("norm", ["bn", "sync", "no-affine", "frozen", "tracking"])
def test_stored_statistics_are_tapped_under_the_layers_own_names(norm):
    network = settled(Normed(norm=norm))
    teacher = make_teacher(lambda channels, outputs: network.train(norm != "sync").eval())
    assert len(batch_norms(network)) == 2
    tapped = TappedTeacher(teacher)
    assert tapped.names == ["features.0.1", "features.1.1"]
    images = torch.randn(4, *teacher.spec.shape)
    outputs, layers = tapped(images)
    torch.testing.assert_close(outputs, teacher.logits(images))
    layer = network.get_submodule("features.0.1")
    mean, var = mean_gap_and_var(layers[0], "batch")
    seen = network.features[0][0](images)
    torch.testing.assert_close(mean + layer.running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(var, seen.var((0, 2, 3), correction=0))
    assert type(network.get_submodule("features.0.1")) is type(Normed(norm=norm).features[0][1])


def test_a_batch_norm_that_is_called_as_a_function_is_matched_in_the_captured_graph():
    teacher = make_teacher(FunctionalNorm)
    assert not batch_norms(teacher.network)
    assert calls_batch_norm(teacher.network, teacher.spec) and stores_any(teacher.network, teacher.spec)
    tapped = TappedTeacher(teacher)
    assert len(tapped.names) == 1
    images = torch.randn(3, *teacher.spec.shape)
    outputs, (sums,) = tapped(images)
    torch.testing.assert_close(outputs, teacher.logits(images))
    seen = teacher.network.conv(teacher.spec.standard_to_norm(images))
    mean, var = mean_gap_and_var(sums, "sample")
    torch.testing.assert_close(mean + teacher.network.mean, seen.mean((2, 3)))
    torch.testing.assert_close(var, seen.var((2, 3), correction=0))
    assert torch.equal(sums.var_C, teacher.network.var)


class Uncapturable(FunctionalNorm):
    def forward(self, x):
        return super().forward(x) if x.mean().item() < 1e9 else x


class HalfUncapturable(Uncapturable):
    def __init__(self, channels, outputs):
        super().__init__(channels, outputs)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return super().forward(self.norm(x))


def test_functions_in_a_network_that_cannot_be_captured():
    with pytest.raises(UntraceableError, match="cannot be captured"):
        TappedTeacher(make_teacher(Uncapturable))
    teacher = make_teacher(HalfUncapturable)
    with pytest.warns(UserWarning, match="called as functions are left out"):
        assert TappedTeacher(teacher).names == ["norm"]


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_statistics_of_the_batch_alone_are_none(norm):
    teacher = make_teacher(lambda channels, outputs: Normed(channels, outputs, norm))
    assert not stores_any(teacher.network, teacher.spec)
    with pytest.raises(NoBatchNormError, match="no BatchNorm layer with stored statistics"):
        TappedTeacher(teacher)


def test_a_batch_norm_that_never_runs_is_not_matched():
    class Unused(Normed):
        def __init__(self, channels, outputs):
            super().__init__(channels, outputs, "group")
            self.aside = nn.BatchNorm2d(4)

    with pytest.raises(NoBatchNormError):
        TappedTeacher(make_teacher(Unused))


def test_functions_with_the_batchs_own_statistics_are_none():
    class OwnStatistics(FunctionalNorm):
        def forward(self, x):
            return self.head(F.batch_norm(self.conv(x), self.mean, self.var, training=True).mean((2, 3)))

    network = OwnStatistics().eval()
    assert not calls_batch_norm(network, image_spec())


def test_the_copy_is_channels_last_where_that_is():
    network = private_copy(Normed(norm="frozen").eval(), image_spec())
    assert network.features[0][0].weight.is_contiguous(memory_format=torch.channels_last)


class Both(FunctionalNorm):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.BatchNorm1d(8), self.head)


@pytest.mark.parametrize(
    ("network", "expected"),
    [(Normed, 2), (lambda: Normed(norm="group"), 0), (FunctionalNorm, 1), (Both, 2), (Uncapturable, 0)],
)
def test_all_batch_norms_that_methods_match_are_counted(network, expected):
    teacher = make_teacher(lambda *_: network())
    assert count_norms(teacher.network, teacher.spec) == expected
