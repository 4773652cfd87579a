"""DGH: statistics of the whole set, its views, and its joint loop."""

import numpy as np
import pytest
import torch
from toys import NETWORKS, batch_norm_inputs, image_spec, make_teacher

from zsq.contract import Silent
from zsq.core.runtime import Runtime
from zsq.engine.joint import JointInversion, StoredSums, WithInput
from zsq.engine.objectives import TeacherPass, Term, output_range, set_gap
from zsq.engine.parameterise import Pixels
from zsq.engine.statistics import Alignment, TappedTeacher
from zsq.engine.views import Clip, RandomCrop, centre_crop
from zsq.generators import create
from zsq.generators.dgh import DGHOptions
from zsq.plan import Plan
from zsq.teacher import load_teacher


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def teacher64():
    return make_teacher(NETWORKS["downsample"], dtype=torch.float64)


def whole_set_by_hand(teacher, images):
    """Mean over the images themselves and all BN inputs of the squared gaps of mean and of std."""
    inputs = batch_norm_inputs(teacher, images)
    means = [np.square(x.mean((0, 2, 3)) - mean).mean() for x, mean, _ in inputs]
    roots = [np.sqrt(x.var((0, 2, 3)) + 1e-6) - np.sqrt(var + 1e-6) for x, _, var in inputs]
    return np.mean(means), np.mean([np.square(root).mean() for root in roots])


def test_parts_of_the_set_give_the_statistics_of_the_whole(teacher64):
    """Each batch, with the others' stored sums, sees the loss of all images together."""
    images = torch.randn(10, *teacher64.spec.shape, generator=rng(), dtype=torch.float64)
    batches = images.split((4, 4, 2))
    tapped, stored = WithInput(TappedTeacher(teacher64)), StoredSums((4, 4, 2))
    seen = [tapped(batch) for batch in batches]
    for index, (_, layers) in enumerate(seen):
        stored.store(index, layers)
    wanted = whole_set_by_hand(teacher64, images)
    for index, (logits, layers) in enumerate(seen):
        forward = TeacherPass(batches[index], logits, layers, None, others=stored.others(index))
        found = [set_gap(Alignment("set"), moment)(forward).item() for moment in (0, 1)]
        assert found == pytest.approx(wanted, rel=1e-5)


def test_only_the_current_batch_gets_a_gradient_and_sums_are_refreshed(tiny_teacher):
    tapped, stored = WithInput(TappedTeacher(tiny_teacher)), StoredSums((2, 3))
    one, other = (torch.randn(n, *tiny_teacher.spec.shape, requires_grad=True) for n in (2, 3))
    for index, images in enumerate((one, other)):
        stored.store(index, tapped(images)[1])
    assert not any(s.s1_C.requires_grad for s in stored.others(0)) and stored.others(0)[0].num_images == 3
    logits, layers = tapped(one)
    set_gap(Alignment("set"), 0)(TeacherPass(one, logits, layers, None, others=stored.others(0))).backward()
    assert one.grad.any() and other.grad is None
    before = stored.others(0)[0].s1_C.clone()
    stored.store(1, tapped(other * 2)[1])
    torch.testing.assert_close(stored.others(0)[0].s1_C, 2 * before)


def test_the_loop_is_radam_in_turns(tiny_teacher):
    """Two batches and the set's mean, in float64 with torch's own RAdam."""
    terms = [Term("mean", 1.0, set_gap(Alignment("set"), 0))]
    spec = tiny_teacher.spec
    made = JointInversion(
        WithInput(TappedTeacher(tiny_teacher)),
        lambda batch: Pixels(spec, batch, "cpu", 0.3),
        terms,
        (),
        8,
        Runtime(),
        torch.optim.RAdam,
    )
    found, history = made.run((3, 2), rng(), Silent())

    teacher, generator = make_teacher(dtype=torch.float64), rng()
    low, high = spec.valid_box()
    x = [torch.randn(n, *spec.shape, generator=generator).clamp(low, high).double() for n in (3, 2)]
    optimizers = [torch.optim.RAdam([each.requires_grad_()], lr=0.3) for each in x]
    tapped = WithInput(TappedTeacher(teacher))
    sums = [[s.s1_NC.detach().sum(0) for s in tapped(each)[1]] for each in x]
    for _ in range(8):
        losses = []
        for index, optimizer in enumerate(optimizers):
            layers = tapped(x[index])[1]
            gaps = [
                (s.s1_NC.sum(0) + rest) / (5 * s.num_positions)
                for s, rest in zip(layers, sums[1 - index], strict=True)
            ]
            loss = torch.stack([gap.square().mean() for gap in gaps]).mean()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sums[index] = [s.s1_NC.detach().sum(0) for s in layers]
            with torch.no_grad():
                x[index].clamp_(low, high)
    for ours, wanted in zip(found, x, strict=True):
        torch.testing.assert_close(ours.double(), wanted.detach(), rtol=1e-3, atol=1e-3)
    assert history.last()["mean"] == pytest.approx(np.mean(losses), rel=1e-3)


def test_a_set_in_batches_lowers_the_loss_of_the_whole():
    """Of a trained teacher, against noise."""
    teacher = load_teacher("embedded:digits")
    (group,) = Plan(count=12, batch=4, shard_size=12, seed=0, batches_per_group=None).groups
    assert group.batch_sizes == (4, 4, 4)
    tapped = TappedTeacher(teacher)

    def distance(name):
        images = create(name, teacher, iterations=60).synthesize(group, Silent()).standard_NCHW
        with torch.no_grad():
            return Alignment("batch")(tapped(images)[1]).item()

    assert distance("dgh") < distance("noise") / 2


def test_output_range_against_numpy():
    logits = torch.randn(4, 6, generator=rng())
    wanted = (logits.numpy().min(1) - logits.numpy().max(1)).mean()
    assert output_range(TeacherPass(logits, logits, [], None)).item() == pytest.approx(wanted, rel=1e-6)


def test_crop_and_clip():
    images = torch.arange(2 * 7 * 9).view(1, 2, 7, 9).float()
    crop = RandomCrop((4, 5))
    generator = rng()
    draws = torch.stack([crop.draw(images.shape, generator) for _ in range(300)])
    assert draws.min(0).values.tolist() == [0, 0] and draws.max(0).values.tolist() == [3, 4]
    assert torch.equal(crop(images, torch.tensor([2, 3])), images[..., 2:6, 3:8])
    assert torch.equal(centre_crop(images, (4, 5)), images[..., 1:5, 2:7])
    spec = image_spec()
    x = (5 * torch.randn(2, *spec.shape, generator=rng())).requires_grad_()
    clipped = Clip(spec, "cpu")(x, torch.empty(0))
    low, high = spec.valid_box()
    torch.testing.assert_close(clipped, x.detach().clamp(low, high))
    (gradient,) = torch.autograd.grad((2 * clipped).sum(), x)
    assert (gradient == 2).all()


def test_published_constants():
    options = DGHOptions.resolve("dgh", image_spec(size=(224, 224)), {})
    assert (options.iterations, options.learning_rate, options.patience) == (1000, 16, 20)
    assert (options.factor, options.min_learning_rate, options.std_weight) == (0.5, 1e-4, 10)
    assert (options.output_weight, options.margin, options.sigma) == (1e-5, 32, 1.25)
    assert DGHOptions.resolve("dgh", image_spec(size=(32, 32)), {}).margin == 5
    assert create("dgh", make_teacher()).batches_per_group is None
