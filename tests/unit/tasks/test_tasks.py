"""What tasks say of outputs: shapes, signal-to-noise ratios, metrics and losses."""

import dataclasses
import math
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import mean_absolute_error, r2_score

from zsq.core.errors import ImagesError, MismatchError
from zsq.tasks import TASKS
from zsq.tasks.image import Image, psnr
from zsq.tasks.metrics import against_teacher, metric_range, unit, words
from zsq.tasks.nesting import named_tensors, pick, plain, shapes


@dataclasses.dataclass
class Truth:
    labels: torch.Tensor
    targets: torch.Tensor | None = None


class Heads(NamedTuple):
    boxes: torch.Tensor
    scores: torch.Tensor


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scored(task, student, teacher, truth=None, batch=3):
    """Batch by batch, as a set of images is measured."""
    meter = task.meter()
    for first in range(0, len(student), batch):
        rows = slice(first, first + batch)
        meter.add(student[rows], teacher[rows], truth, rows)
    return meter.scores().metrics


@pytest.mark.parametrize("task", [*TASKS])
def test_every_task_has_the_ratio_and_equal_outputs_have_no_noise(task):
    outputs = draws(7, 3, 12, 12) if task in ("image", "segment") else draws(7, 4)
    same = scored(TASKS[task](), outputs, outputs)
    assert same["sqnr"] == same["sqnr_centred"] == 150.0
    found = scored(TASKS[task](), outputs + 0.1, outputs)
    assert found["sqnr"] == pytest.approx(10 * math.log10(outputs.square().mean() / 0.01), abs=1e-3)


def test_centred_ratio_takes_no_signal_from_what_all_images_share():
    varying, noise = draws(64, 5, 6), 0.1 * draws(64, 5, 6, seed=1)
    teacher = 1000 + varying.double()
    found = scored(TASKS["other"](), teacher + noise, teacher, batch=10)
    signal = (varying - varying.mean(0)).square().sum() / noise.square().sum()
    assert found["sqnr_centred"] == pytest.approx(10 * math.log10(signal), abs=1e-3)
    assert found["sqnr"] > found["sqnr_centred"] + 50


def test_one_image_has_no_mean_to_vary_around():
    assert list(scored(TASKS["other"](), draws(1, 5), draws(1, 5, seed=1))) == ["sqnr"]


def test_each_output_of_a_nesting_has_its_own_ratio_and_the_lowest_leads():
    teacher = {"maps": [draws(4, 2, 3, 3), draws(4, 8)], "mean": torch.tensor(2.0)}
    student = {"maps": [teacher["maps"][0] + 0.1, teacher["maps"][1] + 1.0], "mean": torch.tensor(2.0)}
    meter = TASKS["detect"]().meter()
    meter.add(student, teacher, None, slice(0, 4))
    found = meter.scores().metrics
    assert list(found) == ["sqnr", "sqnr_centred", "sqnr.maps.0", "sqnr.maps.1", "sqnr.mean"]
    assert found["sqnr"] == found["sqnr.maps.1"] < found["sqnr.maps.0"] < found["sqnr.mean"] == 150.0


def test_classes_are_counted_over_batches_and_need_labels_for_accuracy_alone():
    teacher = torch.eye(5).repeat(2, 1)
    student = teacher.clone()
    student[:3] = student[:3].roll(1, 1)
    truth = Truth(torch.arange(10) % 5)
    found = scored(TASKS["classify"](), student, teacher, truth)
    assert (found["accuracy"], found["agreement"]) == (70.0, 70.0)
    assert next(iter(scored(TASKS["classify"](), student, teacher))) == "agreement"


def test_masks_are_counted_whatever_the_size_of_the_logits():
    masks = torch.tensor([[[0, 0, 1, 255], [2, 2, 1, 255]]], dtype=torch.uint8)
    found = F.one_hot(torch.tensor([[[0, 1, 1, 1], [2, 2, 0, 0]]]), 4).permute(0, 3, 1, 2).float()
    metrics = scored(TASKS["segment"](), found, found, Truth(torch.tensor([-1]), masks))
    # Class 0: 1 of 3, class 1: 1 of 3, class 2: 2 of 2; class 3 neither occurs nor is found.
    assert metrics["miou"] == pytest.approx(100 * (1 / 3 + 1 / 3 + 1) / 3)
    assert metrics["pixel_accuracy"] == pytest.approx(100 * 4 / 6)
    large = Truth(torch.tensor([-1]), masks.repeat_interleave(2, 1).repeat_interleave(2, 2))
    small = F.interpolate(found, scale_factor=2, mode="bilinear")
    assert (
        scored(TASKS["segment"](), found, found, large)["miou"]
        == scored(TASKS["segment"](), small, small, large)["miou"]
    )


def test_images_are_compared_as_eight_bits_on_luma_without_their_border():
    task = Image(psnr_on="y", border=1)
    target = torch.full((2, 3, 14, 14), 100, dtype=torch.uint8)
    outputs = torch.full((2, 3, 14, 14), 110.3 / 255)
    outputs[..., 0, :] = 5.0
    found = scored(task, outputs, outputs, Truth(torch.tensor([-1, -1]), target))
    luma = [round(16 + level * (65.481 + 128.553 + 24.966) / 255) for level in (110, 100)]
    step = luma[0] - luma[1]
    assert found["psnr"] == pytest.approx(20 * math.log10(255 / step), abs=1e-6)
    assert found["psnr_teacher"] == 100.0
    assert dataclasses.replace(task, output_range=(-1.0, 1.0)).to_levels(torch.zeros(1)) == 128
    assert psnr(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 255.0)) == 0


def test_errors_of_numbers_are_those_of_scikit_learn_whatever_their_offset():
    y, s = 1e6 + draws(50, 3).double(), 1e6 + draws(50, 3, seed=1).double()
    array_y, array_s = y.numpy(), s.numpy()  # scikit-learn 1.5 takes no tensors
    found = scored(TASKS["regress"](), s, s, Truth(torch.full((50,), -1), y))
    assert found["r2"] == pytest.approx(100 * r2_score(array_y, array_s, multioutput="variance_weighted"))
    assert found["mae"] == pytest.approx(mean_absolute_error(array_y, array_s))
    alone = scored(TASKS["regress"](), s[:, :1], s[:, :1], Truth(torch.full((50,), -1), y[:, 0]))
    assert alone["r2"] == pytest.approx(100 * r2_score(array_y[:, 0], array_s[:, 0]))


def test_values_that_nobody_knows_do_not_count():
    y, s = draws(40, 2, 3), draws(40, 2, 3, seed=1)
    unknown = torch.rand(40, 2, 3, generator=torch.Generator().manual_seed(2)) < 0.3
    unknown[0] = True
    holed = y.masked_fill(unknown, torch.nan)
    found = scored(TASKS["regress"](), s, s, Truth(torch.full((40,), -1), holed))
    assert found["mae"] == pytest.approx((y - s)[~unknown].abs().mean().item())
    varying = (holed - holed.nanmean(0)).square().nansum()
    assert found["r2"] == pytest.approx(100 * (1 - (y - s)[~unknown].square().sum() / varying).item())


def test_a_loss_of_numbers_has_no_unit():
    teacher, student = draws(6, 3), draws(6, 3, seed=1)
    loss = TASKS["regress"]().loss
    assert loss(1000 * student, 1000 * teacher) == pytest.approx(loss(student, teacher).item())
    assert loss(teacher, torch.zeros(6, 3)).isfinite()


def test_metrics_have_words_a_unit_and_a_reach():
    assert (words("r2"), unit("r2"), metric_range("r2")) == ("R²", "points", (-math.inf, 100.0))
    assert (unit("mae"), unit("psnr_teacher"), unit("sqnr.maps.0"), unit("accuracy")) == (
        "",
        "dB",
        "dB",
        "points",
    )
    assert (words("sqnr.maps.0"), words("pixel_accuracy")) == ("sqnr.maps.0", "pixel accuracy")
    assert metric_range("sqnr.maps.0") == (-150.0, 150.0) and metric_range("tar@1e-3") == (0.0, 100.0)
    compared = {"agreement", "agreement_ap", "cosine", "psnr_teacher", "sqnr", "sqnr.maps.0"}
    others = {"accuracy", "map", "psnr", "miou", "r2", "mae", "eer"}
    assert {name for name in compared | others if against_teacher(name)} == compared


@pytest.mark.parametrize(
    ("task", "truth", "error", "message"),
    [
        ("classify", Truth(torch.tensor([0, -1])), ImagesError, "1 of 2 evaluation images have no label"),
        ("classify", Truth(torch.tensor([0, 7])), MismatchError, "labels up to 7; expected 0..2"),
        ("embed", Truth(torch.tensor([0, 0])), ImagesError, "1 identities"),
        ("image", Truth(torch.tensor([0])), ImagesError, "without the images that should come out"),
        ("segment", Truth(torch.tensor([0])), ImagesError, "without masks"),
        (
            "segment",
            Truth(torch.tensor([0]), torch.full((1, 2, 2), 9, dtype=torch.uint8)),
            MismatchError,
            "class 9; expected 0..2, the teacher's 3 classes, or 255",
        ),
        (
            "segment",
            Truth(torch.tensor([0]), torch.full((1, 2, 2), 255, dtype=torch.uint8)),
            ImagesError,
            "every pixel is 255",
        ),
        ("segment", Truth(torch.tensor([0]), torch.zeros(1, 2, 2)), ImagesError, "without masks"),
        ("image", Truth(torch.tensor([0]), torch.zeros(1, 3, 2, 2)), ImagesError, "without the images"),
        ("regress", Truth(torch.tensor([0])), ImagesError, "without true values"),
        ("regress", Truth(torch.tensor([0]), torch.full((2, 3), torch.nan)), ImagesError, "the same for all"),
        (
            "regress",
            Truth(torch.tensor([0]), torch.tensor([[0.1], [torch.nan], [0.1]])),
            ImagesError,
            "the same",
        ),
        ("regress", Truth(torch.tensor([0]), torch.tensor([7, 7, 7])), ImagesError, "the same"),
        ("regress", Truth(torch.tensor([0]), torch.full((1, 3), torch.inf)), ImagesError, "infinity"),
        (
            "image",
            Truth(torch.tensor([0]), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)),
            MismatchError,
            "targets of 1 channel; expected 3",
        ),
    ],
)
def test_truth_of_another_network_is_refused(task, truth, error, message):
    with pytest.raises(error, match=message):
        TASKS[task]().check_truth(truth, 3)


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.trains])
def test_losses_are_least_where_student_and_teacher_agree(task):
    shape = (2, 3, 5, 5) if task in ("image", "segment", "detect") else (6, 3)
    teacher = draws(*shape)
    student = draws(*shape, seed=1).requires_grad_()
    before = TASKS[task]().loss(student, teacher)
    before.backward()
    after = TASKS[task]().loss(student - 0.1 * student.grad / student.grad.norm(), teacher)
    assert before > after > TASKS[task]().loss(teacher, teacher) == pytest.approx(0, abs=1e-6)


def test_outputs_of_any_holder_are_found_named_and_picked():
    outputs = SimpleNamespace(
        logits=torch.zeros(1, 5), heads=[Heads(torch.zeros(1, 4), torch.zeros(1, 2))], note="x", none=None
    )
    names = [name for name, _ in named_tensors(plain(outputs))]
    assert names == ["logits", "heads.0.boxes", "heads.0.scores"]
    assert pick(outputs, "heads.0.scores").shape == (1, 2) and pick(outputs, "logits") is outputs.logits
    assert shapes(outputs) == "logits (1, 5), heads.0.boxes (1, 4), heads.0.scores (1, 2)"
    for path in ("heads.1", "logits.0", "missing", "heads.scores"):
        with pytest.raises(KeyError):
            pick(outputs, path)
    assert plain(None) is None and plain({"a": 3}) is None and shapes("x") == "a str without a tensor"
    round_trip = []
    round_trip.append(round_trip)
    assert plain(round_trip) is None
