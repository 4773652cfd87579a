"""NaN and infinity stop a run where they first occur, and nothing is written."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import conv_bn, head, make_teacher

from zsq.config import GenerateConfig
from zsq.contract import Silent
from zsq.core.errors import NonFiniteError
from zsq.core.runtime import Runtime
from zsq.engine.finite import CUDA_EVERY, Guard, require_finite_outputs
from zsq.engine.statistics import TappedTeacher
from zsq.engine.weights import WeightTapped
from zsq.generators import METHODS, create
from zsq.plan import Plan
from zsq.synthesis import synthesize

LEARNING = [
    name
    for name, cls in METHODS.items()
    if "iterations" in cls.options_class.model_fields
    and not (cls.facts.needs_real or cls.facts.needs_boxes or cls.facts.needs_attention)
]
# These run the captured graph, in which a network does not count its calls.
FROM_WEIGHTS = [name for name in LEARNING if METHODS[name].facts.needs_moments]


class Breaking(nn.Module):
    """Divides by zero between its two layers from the `after`-th batch on; a single image never counts."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.first, self.second, self.head = conv_bn(channels, 8, 2), conv_bn(8, 12, 2), head(12, outputs)
        self.after, self.batches = None, 0

    def forward(self, x):
        x = self.first(x)
        if self.after is not None and len(x) > 1:
            self.batches += 1
            x = x / (0.0 if self.batches > self.after else 1.0)
        return self.head(self.second(x))


class Bright(nn.Module):
    """No number for white pixels."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.net = nn.Sequential(conv_bn(channels, 8, 2), head(8, outputs))

    def forward(self, x):
        return self.net((1.5 - (x.clamp(max=0) if self.training else x)).sqrt())


def breaking(after):
    teacher = make_teacher(Breaking)
    teacher.network.after = after
    return teacher


def test_outputs_are_checked_on_one_image():
    require_finite_outputs(make_teacher())
    with pytest.raises(NonFiniteError, match=r"'toy' gives NaN .* random pixels, first in 'net\.0\.0'"):
        require_finite_outputs(make_teacher(Bright))


@pytest.mark.parametrize("name", FROM_WEIGHTS)
def test_methods_of_estimated_statistics_stop_and_write_no_shard(name, tmp_path, monkeypatch):
    measured, calls = WeightTapped.forward, []

    def breaking_late(self, images):
        outputs, layers = measured(self, images)
        calls.append(images)
        factor = float("nan") if len(calls) > 4 else 1.0
        return outputs, [replace(sums, s1_NC=sums.s1_NC * factor) for sums in layers]

    monkeypatch.setattr(WeightTapped, "forward", breaking_late)
    config = GenerateConfig(teacher="toy", method=name, count=6, batch=3, iterations=4)
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in loss .* at iteration \d"):
        synthesize.generate(config, tmp_path / "run", teacher=make_teacher())
    assert not list(tmp_path.rglob("*.h5")) and not list(tmp_path.rglob("manifest*"))


@pytest.mark.parametrize("name", [name for name in LEARNING if name not in FROM_WEIGHTS])
def test_every_method_stops_and_writes_no_shard(name, tmp_path):
    config = GenerateConfig(teacher="toy", method=name, count=6, batch=3, iterations=4)
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in loss .* at iteration \d") as error:
        synthesize.generate(config, tmp_path / "run", teacher=breaking(4))
    assert error.value.exit_code == 1 and "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.h5")) and not list(tmp_path.rglob("manifest*"))


@pytest.mark.parametrize("name", ["zeroq", "genie", "dgh"])
def test_the_first_bad_step_and_layer_are_named(name):
    """Before its first step dgh measures every batch once, the others none."""
    teacher = breaking(3 if name == "dgh" else 2)
    (group,) = Plan(count=4, batch=4, shard_size=4, seed=0).groups
    with pytest.raises(NonFiniteError, match=r"at iteration 2, first at layer 'second\.1'"):
        create(name, teacher, iterations=5).synthesize(group, Silent())


def test_a_method_says_its_terms(tmp_path):
    (group,) = Plan(count=4, batch=4, shard_size=4, seed=0).groups
    with pytest.raises(NonFiniteError, match="in loss bn at iteration"):
        create("zeroq", breaking(0), iterations=5).synthesize(group, Silent())


def guard(every=1):
    made = Guard(("bn", "ce"), TappedTeacher(make_teacher()).names, Runtime())
    made.every = every
    return made


def step(total=1.0, bn=1.0, ce=1.0, layer=1.0):
    return torch.tensor(total), torch.tensor([bn, ce]), torch.tensor([1.0, 1.0, layer, layer])


def test_without_waiting_for_the_device_the_first_bad_step_is_still_the_one_named():
    nan, late = float("nan"), guard(every=4)
    late.watch(0, *step())
    late.watch(1, *step(nan, ce=nan))
    late.watch(2, *step(nan, bn=nan, ce=nan, layer=nan))
    with pytest.raises(NonFiniteError, match="NaN or infinity in loss ce at iteration 1;"):
        late.watch(3, *step(nan, bn=nan, ce=nan, layer=nan))
    short = guard(every=CUDA_EVERY)
    short.watch(0, *step(float("inf"), bn=float("inf"), layer=float("inf")))
    with pytest.raises(NonFiniteError, match=r"in loss bn at iteration 0, first at layer '1\.1'"):
        short.finished(torch.zeros(1))
    assert CUDA_EVERY <= 50


def test_images_of_the_last_step_are_looked_at_too():
    guard().finished(torch.zeros(3))
    with pytest.raises(NonFiniteError, match="not finite after the last iteration"):
        guard().finished(torch.tensor([0.0, float("nan")]))
