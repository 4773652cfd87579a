"""TSZ: what is asked of a detector, when it changes, and which loss asks for it."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import as_detector, image_spec, make_teacher

from zsq.config import GenerateConfig
from zsq.contract import Silent
from zsq.core.errors import MismatchError
from zsq.engine.detection import detection_loss, padded
from zsq.engine.detector import AskedBoxes, Detector, Followed
from zsq.engine.statistics import TappedTeacher
from zsq.engine.views import Flip, Roll
from zsq.generators import create
from zsq.plan import Plan
from zsq.shards.manifest import read_manifest
from zsq.shards.reader import ShardDataset
from zsq.synthesis import synthesize
from zsq.tasks.detect import Detect
from zsq.teacher import load_teacher


def plan(count=4, batch=4):
    return Plan(count=count, batch=batch, shard_size=count, seed=0)


def made(teacher, count=4, batch=4, iterations=4, **options):
    method = create("tsz", teacher, options, iterations=iterations)
    return method, [method.synthesize(group, Silent()) for group in plan(count, batch).groups]


def detect(teacher, **changes):
    return dataclasses.replace(teacher, task=dataclasses.replace(teacher.task, **changes))


@pytest.fixture
def teacher():
    return as_detector(make_teacher())


def test_published_constants():
    options = create("tsz", as_detector(make_teacher())).options.model_dump()
    assert options == {
        "iterations": 3000,
        "learning_rate": 0.2,
        "task_weight": 0.1,
        "bn_weight": 0.05,
        "first_layer_weight": 5.0,
        "tv_weight": 0.002,
        "sample_every": 100,
        "sample_from": 800,
        "sample_until": 2800,
        "jitter": 0,
        "flip": False,
    }


def test_a_classifier_is_refused_in_one_line():
    with pytest.raises(MismatchError, match=r"'toy' finds no boxes; expected a detector, since tsz asks"):
        create("tsz", make_teacher())


def test_a_card_without_dense_or_loss_is_refused_in_one_line(teacher):
    with pytest.raises(MismatchError, match=r"names neither `dense` nor `loss`; .*this teacher suits"):
        create("tsz", detect(teacher, dense=None))


def test_a_loss_needs_the_names_of_the_classes(teacher):
    changes = {"dense": None, "training_loss": lambda outputs, targets: outputs.sum(), "labels": None}
    with pytest.raises(MismatchError, match="does not say which classes there are"):
        create("tsz", detect(teacher, **changes))


def test_terms_vanish_where_the_batch_has_the_stored_statistics(teacher):
    """Every layer stores the mean and the biased variance that it has on this batch: R is 0."""
    images = torch.randn(4, *teacher.spec.shape, generator=torch.Generator().manual_seed(0))

    def values(tsz):
        inversion = tsz.inversion(4)
        with torch.no_grad():
            _, layers = inversion.tapped(images)
        terms = {term.name: term.function for term in inversion.terms}
        return [
            terms[name](SimpleNamespace(layers=layers, others=None)).item() for name in ("bn", "first_bn")
        ]

    assert min(values(create("tsz", teacher))) > 0.1
    norms = [module for module in teacher.network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        teacher.network.train()(teacher.spec.standard_to_norm(images))
    teacher.network.eval()
    for norm, count in zip(norms, (4 * 8 * 8, 4 * 4 * 4), strict=True):
        norm.running_var *= (count - 1) / count
    assert values(create("tsz", teacher)) == pytest.approx([0, 0], abs=1e-4)


def test_the_first_layer_counts_once_more(teacher):
    inversion = create("tsz", teacher).inversion(2)
    inversion.parameterisation.reset(torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, layers = inversion.tapped(inversion.parameterisation())
        functions = {term.name: term.function for term in inversion.terms}
        values = [
            functions[name](SimpleNamespace(layers=some, others=None))
            for name, some in (("bn", layers), ("bn", layers[1:]), ("first_bn", layers))
        ]
    assert values[0] - values[1] == pytest.approx(values[2].item(), rel=1e-4)
    assert {term.name: term.weight for term in inversion.terms}["first_bn"] == 5.0


def test_rate_and_tv_are_in_units_of_pixels():
    spec = image_spec(std=(0.25, 0.25, 0.25))
    inversion = create("tsz", as_detector(make_teacher(spec=spec))).inversion(2)
    (group,) = inversion.parameterisation.groups()
    assert group.rate == pytest.approx(0.2 / 0.25)
    assert {term.name: term.weight for term in inversion.terms}["tv"] == pytest.approx(0.002 * 0.25)


def test_boxes_go_with_their_images(teacher):
    _, batches = made(teacher, count=7, batch=3)
    assert [len(batch.boxes) for batch in batches] == [3, 3, 1]
    assert all(batch.targets_NK is None for batch in batches)
    for batch in batches:
        for target in batch.boxes:
            assert len(target["labels"]) >= 1 and (target["boxes"] >= 0).all()
            assert (target["boxes"] <= 16).all()


def test_images_and_boxes_are_of_one_iteration(teacher, monkeypatch):
    """What the loss of the last step asked for is what is returned, whatever the views of that step."""
    seen = []
    loss = AskedBoxes.loss
    monkeypatch.setattr(
        AskedBoxes, "loss", lambda self, forward: (seen.append(list(self.targets)), loss(self, forward))[1]
    )
    _, (batch,) = made(
        teacher, iterations=6, jitter=3, flip=True, sample_from=0, sample_every=1, sample_until=6
    )
    assert len(seen) == 6
    for asked, returned in zip(seen[-1], batch.boxes, strict=True):
        assert all(torch.equal(asked[name], returned[name]) for name in ("boxes", "labels"))


def test_boxes_are_sampled_between_two_iterations(teacher, monkeypatch):
    calls, iteration = [], []
    find, before = Detector.find, AskedBoxes.before_step

    def noted(self, at, generator):
        iteration[:] = [at]
        before(self, at, generator)

    monkeypatch.setattr(AskedBoxes, "before_step", noted)
    monkeypatch.setattr(
        Detector, "find", lambda self, images: (calls.append(iteration[0]), find(self, images))[1]
    )
    made(teacher, iterations=30)
    assert calls == list(range(8, 29))
    calls.clear()
    made(teacher, iterations=30, sample_every=10)
    assert calls == [8, 18, 28]


def test_without_decode_boxes_stay_as_they_were_drawn(teacher):
    method, (batch,) = made(detect(teacher, decode=None), sample_from=0, sample_every=1)
    assert method.box_labels == "random"
    assert [len(target["labels"]) for target in batch.boxes] == [1] * 4
    assert create("tsz", teacher).box_labels == "sampled"


def test_classes_that_are_none_are_never_asked_for(teacher):
    """Neither drawn nor taken from what is found."""
    few = detect(teacher, labels=(1, 3))
    _, batches = made(few, count=24, batch=12, sample_from=0, sample_every=1, sample_until=9)
    labels = torch.cat([target["labels"] for batch in batches for target in batch.boxes])
    assert set(labels.tolist()) == {1, 3} and len(labels) > 24


@pytest.mark.parametrize("sampled", [True, False])
def test_the_manifest_says_how_labels_were_found(teacher, tmp_path, sampled):
    config = GenerateConfig(teacher="toy", method="tsz", count=4, batch=4, iterations=4)
    loaded = teacher if sampled else detect(teacher, decode=None)
    synthesize.generate(config, tmp_path / "run", teacher=loaded)
    assert read_manifest(tmp_path / "run").method.labels == ("sampled" if sampled else "random")
    assert len(ShardDataset(tmp_path / "run").boxes()) == 4


def test_the_loss_of_the_card_is_used(teacher):
    """It gets the maps as the network returns them and a target for each image."""
    calls = []

    def loss(outputs, targets):
        calls.append((outputs, targets))
        return {"one": outputs["logits"].square().mean(), "two": outputs["more"][0].mean()}

    class Nested(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            logits = self.network(x)
            return {"logits": logits, "more": [logits + 1]}

    task = Detect(training_loss=loss, labels=(0, 1))
    nested = dataclasses.replace(teacher, network=Nested(teacher.network), num_outputs=None, task=task)
    _, (batch,) = made(nested, iterations=2)
    outputs, targets = calls[0]
    assert outputs["logits"].shape == (4, 5) and torch.equal(outputs["more"][0], outputs["logits"] + 1)
    assert [sorted(target) for target in targets] == [["boxes", "labels"]] * 4
    assert [len(target["labels"]) for target in targets] == [1] * 4
    expected = outputs["logits"].square().mean() + outputs["more"][0].mean()
    last = calls[-1][0]["logits"]
    assert batch.losses["task"] == pytest.approx((last.square().mean() + (last + 1).mean()).item())
    assert expected.requires_grad


def test_the_task_loss_is_the_mean_over_images(teacher):
    """A batch repeated has the same loss, so that the weight holds for batches of any size."""
    detector = Detector(teacher, "tsz")
    images = torch.randn(3, *teacher.spec.shape, generator=torch.Generator().manual_seed(0))
    outputs, _ = TappedTeacher(detector.teacher)(images)
    boxes = torch.tensor([[2.0, 2.0, 9.0, 9.0]])
    targets = [{"boxes": boxes + shift, "labels": torch.tensor([shift])} for shift in range(3)]
    once = detector.task_loss(outputs, padded(targets))
    twice = detector.task_loss([each.repeat(2, 1, 1) for each in outputs], padded(targets * 2))
    assert once.item() == pytest.approx(twice.item(), rel=1e-5)
    assert once.item() == pytest.approx(detection_loss(*outputs, padded(targets)).mean().item())


@pytest.mark.parametrize("seed", range(6))
def test_a_painted_box_and_its_target_agree_after_roll_and_flip(seed):
    """A rectangle painted into an image, and the box around it, cut where the pixels wrap."""
    size, generator = (20, 30), torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 1, *size)
    image[0, 0, 6:12, 9:18] = 1
    target = {"boxes": torch.tensor([[9.0, 6.0, 18.0, 12.0]]), "labels": torch.tensor([4])}
    for view in (Followed(Roll(5)), Followed(Flip(per_image=False))):
        image = view(image, view.draw(image.shape, generator))
        target = view.follow(target, size)
    rows, columns = image[0, 0].nonzero().unbind(1)
    painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert target["boxes"][0].tolist() == [value.item() for value in painted]


def test_a_box_rolled_out_of_the_image_is_dropped():
    view = Followed(Roll(5))
    view.drawn = torch.tensor([0, 12])
    target = {
        "boxes": torch.tensor([[9.0, 6.0, 18.0, 12.0], [0.0, 0.0, 9.0, 9.0]]),
        "labels": torch.tensor([4, 5]),
    }
    after = view.follow(target, (20, 20))
    assert after["labels"].tolist() == [5] and after["boxes"].tolist() == [[12.0, 0.0, 20.0, 9.0]]


def test_asked_boxes_are_found():
    """Of the shipped detector: against the same boxes, half the task loss of noise or less."""
    _, (batch,) = made(load_teacher("embedded:digits-detector"), count=8, batch=8, iterations=60)
    teacher = load_teacher("embedded:digits-detector")
    detector = Detector(teacher, "tsz")

    def loss(standard):
        with torch.no_grad():
            outputs = detector.teacher.logits(standard)
        return detector.task_loss(outputs, padded(batch.boxes)).item()

    pixels = torch.randint(0, 255, (8, 1, 96, 96), generator=torch.Generator().manual_seed(0))
    noise = teacher.spec.pixels_to_standard(pixels.to(torch.uint8))
    assert loss(batch.standard_NCHW) < loss(noise) / 2
