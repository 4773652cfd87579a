"""How a student was made: in the file, back from it, and as `zsq inspect` shows it."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from commands import call
from tiny_students import fit, images_of, teacher_for

import zsq
from zsq.contract import ImagesOrigin
from zsq.core.errors import StudentFileError
from zsq.core.runtime import Runtime
from zsq.students import STUDENTS, create
from zsq.widths import Bits

ORIGIN = ImagesOrigin("dsg", {"iterations": 500, "slack": 0.25}, "none")


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_says_how_it_was_made(name):
    teacher = teacher_for(name)
    images = images_of(teacher)
    made = fit(name, teacher, images, seed=3).made
    # Of `mixed` there are those of the student inside too.
    options = {key for key in made.options if "." not in key}
    kind = STUDENTS[name].options_class
    assert options == kind.model_fields.keys() - {"own", *kind.marked("later")}
    assert (made.seed, made.passes, made.num_images, made.origin) == (3, (), 12, None)
    assert made.images_sha256 == hashlib.sha256(images.numpy().tobytes()).hexdigest()
    json.dumps(dict(made.options), allow_nan=False)


def saved_student(digits, images, folder, origin=ORIGIN):
    student = create("ptq", digits.spec, {"observer": "kl"}, Runtime(), passes=["fold", "correct-bias"])
    fitted = student.fit(digits, images[:16], Bits(8, 4), first_last=8, seed=7, origin=origin)
    zsq.save_student(fitted, digits, folder)
    return fitted


@pytest.mark.parametrize("origin", [ORIGIN, None])
def test_it_comes_back_from_the_file(digits, images, tmp_path, origin):
    fitted = saved_student(digits, images, tmp_path, origin)
    assert fitted.made.passes == ("fold", "correct-bias") and fitted.made.origin == origin
    assert zsq.load_student(tmp_path).made == fitted.made


def test_a_student_of_an_early_version_must_be_fitted_again(digits, images, tmp_path):
    saved_student(digits, images, tmp_path)
    record = json.loads((tmp_path / "student.json").read_text())
    record.update(format_version=1, task="classify")
    (tmp_path / "student.json").write_text(json.dumps(record))
    with pytest.raises(StudentFileError, match=r"an earlier version of zsq.*: fit it again"):
        zsq.load_student(tmp_path)


def test_a_student_that_was_put_together_by_hand(digits, images, tmp_path):
    fitted = dataclasses.replace(fit("ptq", digits, images[:8]), made=None)
    zsq.save_student(fitted, digits, tmp_path)
    assert zsq.load_student(tmp_path).made is None
    assert zsq.inspect(tmp_path)[-1] == "how it was made is not recorded"


def test_inspect_shows_it(digits, images, tmp_path, capsys):
    saved_student(digits, images, tmp_path)
    for path in (tmp_path, tmp_path / "student.json", tmp_path / "student.safetensors"):
        shown = call(capsys, "inspect", path)
        assert shown.status == 0, shown.err
        lines = shown.out.splitlines()
        assert lines == zsq.inspect(path)
        assert lines[0] == "student ptq W8A4, first and last layer 8 bits, 17 quantized tensors"
        assert "made with seed 7, passes: fold, correct-bias" in lines
        assert any(line.startswith("student options observer=kl, weight_observer=mse") for line in lines)
        assert any("fitted on 16 images" in line and "method dsg, data read: none" in line for line in lines)
        assert lines[-1] == "options of the images iterations=500, slack=0.25"


def test_what_a_stranger_wrote_stays_a_short_line(digits, images, tmp_path):
    origin = ImagesOrigin("\x1b[31m\n", {"x" * 500: ["y"] * 500}, "z\r" * 500)
    saved_student(digits, images, tmp_path, origin)
    for line in zsq.inspect(tmp_path):
        assert line.isprintable() and len(line) < 400


def test_the_command_line_records_the_method_and_no_path(tmp_path, capsys):
    common = ["--teacher", "embedded:digits"]
    shards, out = tmp_path / "run", tmp_path / "student"
    made = call(capsys, "generate", *common, "--method", "noise", "--count", 8, "--out", shards)
    assert made.status == 0, made.err
    quantized = ["quantize", *common, "--images", shards, "--student", "ptq", "--bits", "W8A8", "--out", out]
    assert call(capsys, *quantized).status == 0
    text = Path(out, "student.json").read_text()
    assert json.loads(text)["made"]["origin"]["method"] == "noise"
    assert str(tmp_path) not in text and str(Path.home()) not in text


def test_real_images_are_of_no_known_method(tmp_path, capsys):
    called = ["quantize", "--teacher", "embedded:digits", "--images", "embedded:digits:train", "--count", 8]
    assert call(capsys, *called, "--student", "ptq", "--bits", "W8A8", "--out", tmp_path).status == 0
    assert zsq.load_student(tmp_path).made.origin is None
    assert zsq.inspect(tmp_path)[-1].endswith("not made by a method that is known")
