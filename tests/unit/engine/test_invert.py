"""The loop against one written out by hand, its promises, and its precisions."""

import shutil
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import conv_bn, head, image_spec, make_teacher

from zsq.contract import Facts, Silent
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.engine.invert import LOG_EVERY, Inversion, InversionMethod, LossHistory, Stage
from zsq.engine.objectives import (
    Term,
    bn_alignment,
    cross_entropy,
    input_alignment,
    mean_image_norm,
    total_variation_l2,
)
from zsq.engine.parameterise import Pixels
from zsq.engine.schedules import Exponential
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.views import Flip, Halve, ResizedCrop, Roll
from zsq.plan import Plan

BATCH = 4
TEN = (Stage(10),)
TARGETS = F.one_hot(torch.arange(BATCH), 5).float()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def standard_terms(**weights):
    return [
        Term("bn", weights.get("bn", 1.0), bn_alignment(Alignment("batch"))),
        Term("ce", weights.get("ce", 1.0), cross_entropy),
        Term("input", weights.get("input", 0.5), input_alignment(Alignment("sample", unbiased=True))),
        Term("tv", weights.get("tv", 1e-3), total_variation_l2),
    ]


def inversion(teacher, terms=None, stages=TEN, runtime=None, **pixel_options):
    pixels = Pixels(teacher.spec, BATCH, "cpu", **({"rate": 0.1} | pixel_options))
    terms = standard_terms() if terms is None else terms
    return Inversion(TappedTeacher(teacher), pixels, terms, stages, runtime or Runtime())


class Recorder:
    def __init__(self):
        self.amounts, self.values = [], []

    def advance(self, amount, **values):
        self.amounts.append(amount)
        self.values.append(values)


def test_the_loop_is_adam_on_clamped_pixels(tiny_teacher):
    """Roll, CE and the norm of the images, in float64 with torch's own Adam."""
    terms = [Term("ce", 2.0, cross_entropy), Term("l2", 0.1, mean_image_norm)]
    view = Roll(2)

    def halving(rate, iterations, device):
        return Exponential(rate, iterations, device, factor=0.5, every=4)

    made = inversion(tiny_teacher, terms, [Stage(12, (view,))], betas=(0.5, 0.9), schedule=halving)
    found, history = made.run(rng(), TARGETS, Silent())

    teacher = make_teacher(dtype=torch.float64)
    generator = rng()
    low, high = teacher.spec.valid_box()
    x = torch.randn(BATCH, *teacher.spec.shape, generator=generator).clamp(low, high).double()
    x.requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1, betas=(0.5, 0.9))
    for iteration in range(12):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 ** (iteration // 4)
        down, right = view.draw(x.shape, generator).tolist()
        seen = torch.roll(x, (down, right), (2, 3))
        ce = F.cross_entropy(teacher.network(seen), TARGETS.argmax(1))
        l2 = torch.linalg.vector_norm(seen, dim=(1, 2, 3)).mean()
        optimizer.zero_grad()
        (2 * ce + 0.1 * l2).backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(low, high)
    torch.testing.assert_close(found.double(), x.detach(), rtol=1e-3, atol=1e-3)
    wanted = {"ce": ce.item(), "l2": l2.item()}
    assert history.last() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("views", [(), (ResizedCrop((0.5, 1.0)), Flip()), (Halve(), Roll(1))], ids=len)
def test_the_losses_fall_and_pixels_stay_in_the_box(tiny_teacher, views):
    _, start = inversion(tiny_teacher, stages=[Stage(1, views)]).run(rng(), TARGETS, Silent())
    made = inversion(tiny_teacher, stages=[Stage(60, views)])
    images, end = made.run(rng(), TARGETS, Silent())
    low, high = tiny_teacher.spec.valid_box()
    assert (images >= low).all() and (images <= high).all() and not images.requires_grad
    total = [sum(t.weight * history.last()[t.name] for t in made.terms) for history in (start, end)]
    assert total[1] < 0.9 * total[0]


def test_same_seed_same_bytes_and_no_memory_of_the_batch_before(tiny_teacher):
    stages = [Stage(4, (Halve(), Roll(1))), Stage(4, (Flip(), ResizedCrop((0.5, 1.0))))]
    made = inversion(tiny_teacher, stages=stages)
    first, _ = made.run(rng(0), TARGETS, Silent())
    other, _ = made.run(rng(1), TARGETS, Silent())
    again, _ = made.run(rng(0), TARGETS, Silent())
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first, inversion(tiny_teacher, stages=stages).run(rng(0), TARGETS, Silent())[0])


@pytest.mark.parametrize("name", ["ce", "input", "tv"])
def test_weight_zero_is_absence_to_the_bit(tiny_teacher, name):
    without = [term for term in standard_terms() if term.name != name]
    one, history = inversion(tiny_teacher, standard_terms(**{name: 0.0})).run(rng(), TARGETS, Silent())
    other, _ = inversion(tiny_teacher, without).run(rng(), TARGETS, Silent())
    weighted, _ = inversion(tiny_teacher).run(rng(), TARGETS, Silent())
    assert torch.equal(one, other) and not torch.equal(one, weighted)
    assert name not in history.last()


@pytest.mark.parametrize("lengths", [(1,), (24,), (25,), (26,), (60,), (10, 30), (0, 5)])
def test_progress_counts_every_image_iteration(tiny_teacher, lengths):
    log = Recorder()
    terms = [Term("l2", 1.0, mean_image_norm)]
    inversion(tiny_teacher, terms, [Stage(length) for length in lengths]).run(rng(), None, log)
    assert sum(log.amounts) == BATCH * sum(lengths)
    assert all(values.keys() == {"l2"} for values in log.values)


def test_stages_start_with_fresh_optimizer_state(tiny_teacher):
    """Adam's first step has the size of the rate, whatever the gradient was."""
    terms = [Term("l2", 1e-3, mean_image_norm)]
    once, _ = inversion(tiny_teacher, terms, [Stage(5)]).run(rng(), None, Silent())
    one_more, _ = inversion(tiny_teacher, terms, [Stage(5), Stage(1)]).run(rng(), None, Silent())
    moved = (once - one_more).abs()
    low, high = tiny_teacher.spec.valid_box()
    free = (once > low) & (once < high) & (once.abs() > 0.2)
    torch.testing.assert_close(moved[free], torch.full_like(moved[free], 0.1), rtol=1e-2, atol=1e-4)


def test_the_teacher_stays_as_it_was(tiny_teacher):
    before = {name: value.clone() for name, value in tiny_teacher.network.state_dict().items()}
    made = inversion(tiny_teacher)
    made.run(rng(), TARGETS, Silent())
    for network in (tiny_teacher.network, made.tapped.network):
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())
        assert not network.training
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks")
    assert not any(getattr(module, name) for module in tiny_teacher.network.modules() for name in hooks)


class Toy(InversionMethod):
    """Matches BN statistics; its second term depends on nothing."""

    name = "toy"
    facts = Facts(paper="none", summary="for tests")

    def inversion(self, batch):
        steering = Term("bn", 1.0, bn_alignment(Alignment("batch")))
        idle = Term("idle", 1.0, lambda forward: forward.viewed_NCHW.sum() * 0)
        pixels = Pixels(self.teacher.spec, batch, "cpu", rate=0.1)
        terms = [steering, idle] if self.options.with_idle else [steering]
        stages = [Stage(self.options.iterations)]
        return Inversion(TappedTeacher(self.teacher), pixels, terms, stages, self.runtime)


class ToyOptions(Options):
    iterations: int = 2 * LOG_EVERY
    with_idle: bool = True


def test_a_term_that_never_changes_is_a_warning(tiny_teacher):
    (group,) = Plan(count=2, batch=2, shard_size=2, seed=0).groups
    with pytest.warns(UserWarning, match="toy: loss term 'idle' never changed") as caught:
        Toy(tiny_teacher, ToyOptions(), Runtime()).synthesize(group, Silent())
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Toy(tiny_teacher, ToyOptions(with_idle=False), Runtime()).synthesize(group, Silent())
        Toy(tiny_teacher, ToyOptions(iterations=1), Runtime()).synthesize(group, Silent())


def test_idle_terms_of_a_history():
    history = LossHistory(("moves", "stands"), [torch.tensor([1.0, 2.0])])
    assert history.idle() == []
    history.rows.append(torch.tensor([0.5, 2.0]))
    assert history.idle() == ["stands"] and history.last() == {"moves": 0.5, "stands": 2.0}


def test_groups_of_several_batches_come_from_one_stream(tiny_teacher):
    (group,) = Plan(count=7, batch=3, shard_size=7, seed=0, batches_per_group=None).groups
    batch = Toy(tiny_teacher, ToyOptions(iterations=2, with_idle=False), Runtime()).synthesize(
        group, Silent()
    )
    assert batch.standard_NCHW.shape == (7, *tiny_teacher.spec.shape) and batch.losses.keys() == {"bn"}
    assert not torch.equal(batch.standard_NCHW[:3], batch.standard_NCHW[3:6])


def one_layer(channels, outputs):
    return nn.Sequential(conv_bn(channels, 8, 2), head(8, outputs))


def loss_and_gradient(runtime, teacher):
    terms = standard_terms()[:2]
    made = inversion(teacher, terms, [Stage(1, (Roll(2),))], runtime)
    made.parameterisation.reset(rng())
    total, values, _, _ = made._steps[0]([torch.tensor([1, -2])], TARGETS)
    total.backward()
    return values, made.parameterisation.images.grad


@pytest.fixture(scope="module")
def eager():
    teacher = make_teacher(one_layer, image_spec(size=(12, 12)))
    return teacher, *loss_and_gradient(Runtime(), teacher)


def test_bf16_convolutions_agree_with_fp32(eager):
    """bf16 keeps 8 bits: losses to 2 %, the gradient's direction to a cosine of 0.99."""
    teacher, values, gradient = eager
    found, found_gradient = loss_and_gradient(Runtime(precision="bf16"), teacher)
    assert found.dtype == torch.float32 and found_gradient.dtype == torch.float32
    torch.testing.assert_close(found, values, rtol=0.02, atol=0.01)
    assert F.cosine_similarity(found_gradient.flatten(), gradient.flatten(), dim=0) > 0.99
    assert not torch.equal(found, values)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_compiled_step_agrees_with_eager(eager):
    """Fused kernels sum in another order: 1e-4 of each value."""
    teacher, values, gradient = eager
    runtime = Runtime(compile=True)
    found, found_gradient = loss_and_gradient(runtime, teacher)
    assert not runtime.failures
    torch.testing.assert_close(found, values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())
