"""One command: teacher and bits go in; images and a student lie beside each other."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import Spoken, call
from torch import nn
from toys import conv_bn, make_teacher

import zsq
from zsq.catalogue import suited_students
from zsq.config import RuntimeConfig
from zsq.core.errors import MismatchError, OptionError, UntraceableError
from zsq.request import defaults
from zsq.request.defaults import Defaults

RUNTIME = RuntimeConfig(threads=1, compile="off")
IMAGES, STUDENT = "outputs/toy-zeroq", "outputs/toy-W8A8"


@pytest.fixture(autouse=True)
def small_and_elsewhere(tmp_path, monkeypatch):
    """Defaults that take no time, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    teacher = make_teacher()
    for where in ("request.fulfil", "api.generating"):
        monkeypatch.setattr(f"zsq.{where}.load_teacher", lambda *_, **__: teacher)
    options = {"observer": "minmax", "weight_observer": "minmax"}
    monkeypatch.setattr(defaults, "TABLE", (Defaults(0, 1, "zeroq", 6, 2, ("ptq",), options),))


def quantize(**changes):
    reporter = Spoken()
    values = {"bits": "W8A8", "runtime": RUNTIME, "reporter": reporter} | changes
    return zsq.quantize("toy", **values), reporter.lines


def shards(folder=IMAGES):
    dataset = zsq.ShardDataset(folder)
    return hashlib.sha256(dataset.pixels().numpy().tobytes()).hexdigest()


def test_images_and_student_lie_beside_each_other(tmp_path):
    result, lines = quantize()
    assert lines[0] == (
        "W8A8 of toy, by default: method zeroq, 6 images, 2 teacher passes each, "
        "student ptq (observer=minmax weight_observer=minmax)"
    )
    assert lines[1].startswith("about ") and " in all" in lines[1]
    assert f"6 images by zeroq, made and kept in {IMAGES}" in lines
    assert zsq.verify_run(IMAGES).num_images == 6
    assert sorted(map(str, result.files)) == [f"{STUDENT}/student.json", f"{STUDENT}/student.safetensors"]
    made = json.loads((tmp_path / STUDENT / "student.json").read_text())["made"]
    assert (made["num_images"], made["origin"]["method"]) == (6, "zeroq")


def test_a_second_call_finds_the_images(tmp_path):
    quantize()
    (shard,) = (tmp_path / IMAGES / "shards").iterdir()
    before = shard.stat().st_mtime_ns, shards()
    result, lines = quantize()
    assert f"6 images by zeroq, found and verified in {IMAGES}" in lines
    assert (shard.stat().st_mtime_ns, shards()) == before
    assert str(result.files[0].parent) == f"{STUDENT}-2"


def test_what_is_damaged_is_made_again_to_the_same_bytes(tmp_path):
    quantize()
    before = shards()
    (shard,) = (tmp_path / IMAGES / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-100])
    _, lines = quantize()
    assert any("its images are made again" in line for line in lines)
    assert shards() == before


def test_another_request_has_images_of_its_own(tmp_path):
    quantize()
    before = shards()
    _, lines = quantize(seed=1)
    assert f"6 images by zeroq, made and kept in {IMAGES}-2" in lines
    assert shards(f"{IMAGES}-2") != before == shards()
    assert f"6 images by zeroq, found and verified in {IMAGES}-2" in quantize(seed=1)[1]


def test_a_folder_of_something_else_is_passed_over(tmp_path):
    (tmp_path / IMAGES).mkdir(parents=True)
    (tmp_path / IMAGES / "run.json").write_text("{")
    assert f"6 images by zeroq, made and kept in {IMAGES}-2" in quantize()[1]


def test_what_is_asked_for_wins(tmp_path):
    asked = {"method": "noise", "count": 4, "student": "ptq", "set": {"observer": "mse"}}
    result, lines = quantize(**asked, out="mine/student")
    assert lines[0] == ("W8A8 of toy, as asked: method noise, 4 images, student ptq (observer=mse)")
    assert zsq.verify_run("mine/toy-noise").num_images == 4
    assert str(result.files[0]) == "mine/student/student.safetensors"
    assert result.fitted.made.options["weight_observer"] == "mse"


def test_effort_wins_over_the_iterations_of_the_row():
    _, lines = quantize(effort="quick", count=2)
    assert "as asked: 2 images, 30 teacher passes each" in lines[0]


def test_options_go_on_top_of_the_default_students():
    result, _ = quantize(set={"observer": "kl"})
    assert (result.fitted.made.options["observer"], result.fitted.made.options["weight_observer"]) == (
        "kl",
        "minmax",
    )


def test_a_student_by_default_on_images_that_are_there(tmp_path):
    pixels = tmp_path / "images.npy"
    np.save(pixels, np.zeros((9, 3, 16, 16), np.uint8))
    result, lines = quantize(images=pixels, count=8)
    assert lines[0] == ("W8A8 of toy, by default: student ptq (observer=minmax weight_observer=minmax)")
    assert (result.fitted.student, result.files) == ("ptq", ())


def test_a_student_that_cannot_be_saved_is_fitted_all_the_same(monkeypatch):
    def refuses(teacher):
        raise UntraceableError("no student of this network can be saved: because")

    monkeypatch.setattr("zsq.saved.saving.check_saveable", refuses)
    result, lines = quantize()
    assert lines[0] == "the student will not be kept: no student of this network can be saved: because"
    assert result.files == ()
    with pytest.raises(UntraceableError):
        quantize(out="mine")


class Recurrent(nn.Module):
    """Nothing is known of what its LSTM does with its weights."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.features, self.recurrent = conv_bn(channels, 8, 4), nn.LSTM(8, outputs, batch_first=True)

    def forward(self, x):
        return self.recurrent(self.features(x).flatten(2).transpose(1, 2))[0][:, -1]


class Branches(Recurrent):
    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


@pytest.mark.parametrize(
    ("network", "complaint"),
    [(Recurrent, "no quantizer for lstm"), (Branches, "cannot be captured at .*if x.mean")],
)
@pytest.mark.parametrize("out", [None, "mine"])
def test_a_network_that_takes_no_quantizers_is_refused_before_images_are_made(
    network, complaint, out, tmp_path, monkeypatch
):
    teacher = make_teacher(network)
    monkeypatch.setattr("zsq.request.fulfil.load_teacher", lambda *_, **__: teacher)
    with pytest.raises(UntraceableError, match=complaint):
        quantize(out=out)
    assert not list(tmp_path.iterdir())
    found = suited_students(teacher, 8, RUNTIME, 1e-3)
    assert all(each.seconds is None for each in found)
    assert any(re.search(complaint, each.refusal) for each in found)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"images": "embedded:digits:val", "method": "dgh"}, "--method dgh with --images"),
        ({"images": "embedded:digits:val", "effort": "quick"}, "--effort quick with --images"),
        ({"method": "fdda"}, "--method fdda, which reads real images"),
        ({"bits": None}, "no bits"),
        ({"student": "lsq-kd", "set": {"colour": 1}}, "lsq-kd has no option 'colour'"),
        ({"out": "taken"}, "taken is a file"),
        ({"bits": "W32A32"}, "--bits W32A32 without --student; expected something to quantize"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(tmp_path, changes, complaint):
    (tmp_path / "taken").touch()
    with pytest.raises(OptionError, match=complaint):
        quantize(**changes)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_bits_have_one_spelling():
    result, lines = quantize(bits=" w8a8 ")
    assert lines[0].startswith("W8A8 of toy")
    assert {path.parent for path in result.files} == {Path(STUDENT)}


def test_fewer_images_than_asked_for_are_said(tmp_path):
    quantize()
    _, lines = quantize(images=IMAGES, count=9, out=tmp_path / "again")
    assert f"{IMAGES} holds 6 images, fewer than --count 9: all are taken" in lines


def test_a_student_that_cannot_learn_is_refused_before_images_are_made(tmp_path, monkeypatch):
    teacher = make_teacher(task="embed")
    monkeypatch.setattr("zsq.request.fulfil.load_teacher", lambda *_, **__: teacher)
    with pytest.raises(MismatchError, match="has no classes"):
        quantize(student="gdfq-ft")
    row = Defaults(0, 1, "zeroq", 6, 2, ("gdfq-ft",))
    monkeypatch.setattr(defaults, "TABLE", (row,))
    with pytest.raises(MismatchError, match="has no classes"):
        quantize()
    assert list(tmp_path.iterdir()) == []


def test_from_the_command_line(capsys, tmp_path):
    run = ("quantize", "--teacher", "toy", "--bits", "W4A4", "--threads", 1, "--compile", "off")
    outcome = call(capsys, *run, "--method", "noise", "--count", 3)
    assert outcome.status == 0
    assert outcome.out.splitlines()[-1].startswith("ptq W4A4, on images of the fit")
    assert "as asked: method noise, 3 images" in outcome.err
    wrong = call(capsys, *run, "--effort", "little")
    assert wrong.status == 2 and "'standard'" in wrong.complaint()


def test_images_without_a_method_are_those_of_the_request(capsys, tmp_path):
    outcome = call(capsys, "generate", "--teacher", "toy", "--threads", 1, "--compile", "off")
    assert (outcome.status, outcome.out) == (0, f"{IMAGES}\n")
    assert "toy, by default: method zeroq, 6 images, 2 iterations" in outcome.err
    assert f"6 images by zeroq, found and verified in {IMAGES}" in quantize(bits="W4A4")[1]
    more = call(
        *(capsys, "generate", "--teacher", "toy", "--threads", 1, "--compile", "off"),
        *("--resume", "--count", 8),
    )
    assert more.status == 0 and zsq.verify_run(IMAGES).num_images == 8
    again = call(capsys, "generate", "--teacher", "toy", "--threads", 1, "--compile", "off", "--resume")
    assert again.status == 0 and zsq.verify_run(IMAGES).num_images == 8
