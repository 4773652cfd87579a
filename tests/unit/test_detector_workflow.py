"""Detectors from the command line: images are made, a student is fitted, saved and measured by its boxes."""

import json
import re
import zipfile

import pytest
from commands import call

from zsq.saved.saving import load_student
from zsq.shards.verify import verify_run

DIGITS = "embedded:digits-detector"


def measured(outcome):
    """The metrics of the line that `zsq quantize` ends with."""
    assert outcome.status == 0, outcome.err
    line = next(line for line in outcome.out.splitlines() if "sqnr centred" in line)
    return {name: float(value) for name, value in re.findall(r", ([a-z0-9 ]+) (-?\d+\.\d+)", line)}


def test_a_student_of_a_detector_is_measured_by_its_boxes(tmp_path, capsys):
    folder, saved = tmp_path / "run", tmp_path / "student"
    made = call(
        capsys,
        "generate",
        "--teacher",
        DIGITS,
        "--method",
        "dgh",
        "--count",
        4,
        "--batch",
        4,
        "--iterations",
        2,
        "--out",
        folder,
    )
    assert made.status == 0, made.err
    assert verify_run(folder).num_images == 4
    found = measured(
        call(
            capsys,
            "quantize",
            "--teacher",
            DIGITS,
            "--images",
            folder,
            "--student",
            "ptq",
            "--bits",
            "W8A8",
            "--eval",
            f"{DIGITS}:test",
            "--out",
            saved,
        )
    )
    assert next(iter(found)) == "agreement ap"
    assert 50 < found["agreement ap"] <= 100 and 50 < found["map"] <= found["map50"]
    assert load_student(saved).task.name == "detect"


def fewer_photos(source, target):
    """Every third photo, with its boxes."""
    with zipfile.ZipFile(source) as photos, zipfile.ZipFile(target, "w") as kept:
        known = json.loads(photos.read("annotations.json"))
        known["images"] = known["images"][::3]
        names = {image["id"]: image["file_name"] for image in known["images"]}
        known["annotations"] = [box for box in known["annotations"] if box["image_id"] in names]
        kept.writestr("annotations.json", json.dumps(known))
        for name in names.values():
            kept.writestr(name, photos.read(name))
    return target


@pytest.mark.data
def test_fastestdet_on_photos(data_folder, tmp_path, capsys):
    folder = data_folder / "detector"
    found = measured(
        call(
            capsys,
            "quantize",
            "--teacher",
            f"file:{folder / 'fastestdet.toml'}",
            "--student",
            "ptq",
            "--images",
            folder / "calibration80.zip",
            "--count",
            16,
            "--bits",
            "W8A8",
            "--eval",
            fewer_photos(folder / "eval77.zip", tmp_path / "eval.zip"),
        )
    )
    # The float network has 19.0; other photos move a student by about 3 points of agreement.
    assert found["map"] == pytest.approx(19, abs=2.5)
    assert found["agreement ap"] > 65
