"""Plausible mistakes from Python: an error in words, and nothing that goes on with a wrong meaning."""

import numpy as np
import pytest
import torch

import zsq
from zsq.adapters import data_loader
from zsq.core.errors import MismatchError, OptionError
from zsq.core.runtime import Runtime
from zsq.images.imageset import ImageSet
from zsq.measure.evaluate import score_student, score_teacher
from zsq.students import create
from zsq.teacher.outputs import made_float
from zsq.widths import Bits

DIGITS = "embedded:digits"


@pytest.fixture(scope="module")
def teacher():
    return zsq.load_teacher(DIGITS)


@pytest.fixture(scope="module")
def images(teacher):
    return zsq.load_images(f"{DIGITS}:test", teacher.spec, limit=16)


@pytest.fixture
def ptq(teacher):
    return create("ptq", teacher.spec, {}, Runtime())


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (lambda pixels: pixels.float() / 255, r"pixels of shape \(16, 1, 32, 32\) float32"),
        (lambda pixels: pixels[0], r"pixels of shape \(1, 32, 32\) uint8"),
        (lambda pixels: pixels.expand(-1, 3, -1, -1), r"pixels of shape \(16, 3, 32, 32\) uint8"),
        (lambda pixels: pixels.numpy(), "pixels in a ndarray"),
    ],
)
def test_only_stored_images_are_normalised(given, found, teacher, images):
    with pytest.raises(MismatchError, match=found):
        teacher.spec.pixels_to_norm(given(images.pixels))


@pytest.mark.parametrize("indices", [torch.ones(16, dtype=torch.bool), [0.9, 1.9]])
def test_a_mask_is_no_list_of_indices(indices, images):
    with pytest.raises(IndexError, match="expected whole numbers"):
        images.subset(indices)


def test_lists_of_indices(images):
    assert [len(images.subset(each)) for each in ([], range(3), np.array([1, 2]))] == [0, 3, 2]


@pytest.mark.parametrize("bits", [8, (8, 8), None, Bits(9, 9), Bits(8.0, 8.0)])
def test_what_are_no_bits(bits, ptq, teacher, images):
    with pytest.raises(OptionError, match="expected Bits of 1 to 8 or 32"):
        ptq.fit(teacher, images.pixels, bits)


def test_bits_as_text(ptq, teacher, images):
    assert ptq.fit(teacher, images.pixels, "W8A4").bits == Bits(8, 4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda run: zsq.measure_gap(DIGITS, [run], DIGITS, DIGITS, ["ptq"], ["W8A8"], "gap", jobs=1.5),
            "jobs: ",
        ),
        (lambda run: zsq.run("digits", budget_hours="an hour"), "budget_hours: "),
        (lambda run: zsq.verify_export(run, "arrays", tolerance="small"), "tolerance: "),
        (lambda run: zsq.inspect_teacher(DIGITS, count=0), "count: "),
        (lambda run: zsq.export(run, 5, "arrays"), "export: to: "),
        (lambda run: zsq.import_images(run, "copy", name=None), "name: "),
    ],
)
def test_arguments_of_another_type(call, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=f"^{said}Input should be"):
        call("run")


@pytest.mark.parametrize(
    "call",
    [
        lambda: zsq.generate(DIGITS, "noise", count=2, reporter=print),
        lambda: zsq.generate(DIGITS, count=2, reporter=print),
        lambda: zsq.quantize(DIGITS, "run", "ptq", "W8A8", reporter=print),
        lambda: zsq.measure_gap(DIGITS, ["run"], DIGITS, DIGITS, ["ptq"], ["W8A8"], "gap", reporter=print),
        lambda: zsq.run("digits", reporter=print),
        lambda: zsq.audit(DIGITS, "run", DIGITS, DIGITS, reporter=print),
        lambda: zsq.inspect_teacher(DIGITS, reporter=print),
        lambda: zsq.inspect_student("student", "run", reporter=print),
    ],
    ids=lambda call: call.__code__.co_names[1],
)
def test_what_is_no_reporter(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=r"^reporter: a builtin_function_or_method; expected a zsq\.core"):
        call()


def test_what_are_no_images_no_teacher_and_no_seed(ptq, teacher, images):
    with pytest.raises(MismatchError, match="images in a ImageSet; expected a tensor"):
        ptq.fit(teacher, images, Bits(8, 8))
    with pytest.raises(OptionError, match="a teacher that is a str; expected what zsq"):
        ptq.fit(DIGITS, images.pixels, Bits(8, 8))
    for seed in (-1, None):
        with pytest.raises(OptionError, match=f"seed {seed}"):
            ptq.fit(teacher, images.pixels, Bits(8, 8), seed=seed)


def test_scores_of_a_student_in_train_mode_are_those_of_eval_mode(teacher, images):
    """And its running statistics stay."""
    student = create("lsq-kd", teacher.spec, {"iterations": 2, "batch": 4}, Runtime())
    fitted, reference = student.fit(teacher, images.pixels, "W4A4"), score_teacher(teacher, images, Runtime())
    scores = score_student(fitted, reference)
    fitted.network.train()
    assert score_student(fitted, reference) == scores
    assert fitted.network.training
    fitted.network.eval()
    assert score_student(fitted, reference) == scores


def test_weights_that_were_converted_are_refused(ptq, images):
    teacher = zsq.load_teacher(DIGITS)
    teacher.network.half()
    with pytest.raises(
        MismatchError, match=r"weights of float16; expected float32; teacher.network.float\(\)"
    ):
        ptq.fit(teacher, images.pixels, "W8A8")
    with pytest.raises(MismatchError, match="weights of float16"):
        score_teacher(teacher, images, Runtime())


def test_a_network_of_double_precision_runs_in_float32():
    network = torch.nn.Linear(2, 2).double()
    with pytest.warns(UserWarning, match="mine is float64: it runs in float32 here"):
        assert made_float(network, "mine")
    assert network.weight.dtype == torch.float32


def test_all_that_quantize_returns_is_no_student(teacher, tmp_path):
    made = zsq.quantize(DIGITS, f"{DIGITS}:train", "ptq", "W8A8", count=8)
    reference = score_teacher(teacher, zsq.load_images(f"{DIGITS}:test", teacher.spec, limit=4), Runtime())
    calls = (
        lambda: zsq.save_student(made, teacher, tmp_path / "student"),
        lambda: zsq.export_onnx(made, tmp_path / "student.onnx"),
        lambda: zsq.export_pt2(made, tmp_path / "student.pt2"),
        lambda: score_student(made, reference),
    )
    for call in calls:
        with pytest.raises(
            OptionError, match=r"a student that is a Quantized; .* zsq.quantize\(...\).fitted"
        ):
            call()
    assert not list(tmp_path.iterdir())


def test_moments_as_one_number(tmp_path):
    torch.save({"images": torch.rand(8, 1, 32, 32)}, tmp_path / "made.pt")
    given = {"name": "other", "std": 1.0}
    made = zsq.import_images(tmp_path / "made.pt", tmp_path / "one", mean=0.0, **given)
    assert made.num_images == 8
    single = np.zeros(1, np.float32)
    assert zsq.import_images(tmp_path / "made.pt", tmp_path / "array", mean=single, **given).num_images == 8
    with pytest.raises(OptionError, match="mean or std '0'; expected one number, or one for each channel"):
        zsq.import_images(tmp_path / "made.pt", tmp_path / "two", mean="0", **given)
    with pytest.raises(zsq.ZsqError, match="does not exist"):
        zsq.import_images(tmp_path / "typo.pt", tmp_path / "two", mean=[0.0], **given)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"spec": "embedded:digits"}, "a spec that is a str; expected an ImageSpec"),
        ({"source": torch.zeros(1)}, "a source of images that is a Tensor"),
        ({"limit": "8"}, "8 images; expected a whole number, at least 1"),
        ({"fit": "crop"}, "fit 'crop'; expected a PhotoFit"),
    ],
)
def test_images_asked_for_wrongly(given, found):
    with pytest.raises(OptionError, match=found):
        zsq.load_images(**{"source": DIGITS, **given})


def test_what_a_loader_cannot_read(images):
    with pytest.raises(OptionError, match="images in a Tensor; expected a run's folder"):
        data_loader(images.pixels)
    with pytest.raises(OptionError, match="batch 0; expected at least 1"):
        data_loader(images, batch=0)


def test_labels_of_other_images(teacher, images):
    other = ImageSet(images.pixels, images.labels[:4], "mine")
    with pytest.raises(MismatchError, match=r"labels of shape \(4,\); expected \(16,\), one for each image"):
        score_teacher(teacher, other, Runtime())


def test_indices_of_a_shard_set(tmp_path):
    shards = zsq.ShardDataset(zsq.generate(DIGITS, "noise", count=4, out=tmp_path / "run"))
    assert shards[np.int64(-1)]["index"] == 3
    with pytest.raises(TypeError, match="slice"):
        shards[0:2]
    with pytest.raises(IndexError, match="a single index; expected a list of them"):
        shards.pixels(3)
