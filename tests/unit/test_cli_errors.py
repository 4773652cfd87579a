"""Whatever a user can get wrong ends in one line on standard error and the right exit code."""

import os
import pickle
import urllib.error

import pytest
import torch
from commands import call
from toys import image_spec, make_teacher

import zsq
from zsq.config import GenerateConfig
from zsq.synthesis import synthesize

FAILED, USAGE = 1, 2

DIGITS = ("--teacher", "embedded:digits")
NOISE = ("generate", *DIGITS, "--method", "noise", "--count", 8)
FIT = ("quantize", *DIGITS, "--student", "ptq", "--bits", "W4A4", "--images")
RECIPE = """
title = "t"
real = "embedded:digits"
eval = "embedded:digits:test"
teacher = { name = "embedded:digits" }
generate = { count = 8, shard_sets = 1 }
sources = [{ method = "noise" }]
students = [{ name = "ptq", bits = "W4A4" }]
"""


class Code:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return (os.mkdir, ("it-ran",))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs and weights that several cases need."""
    folder = tmp_path_factory.mktemp("made")
    zsq.generate("embedded:digits", "noise", count=8, out=folder / "digits")
    colour = make_teacher(spec=image_spec(3, (32, 32)))
    synthesize.generate(
        GenerateConfig(teacher="toy", method="noise", count=8), folder / "colour", teacher=colour
    )
    torch.save(colour.network.state_dict(), folder / "other.pt")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("ZSQ_NOT_SET", raising=False)


@pytest.mark.parametrize(
    ("arguments", "found", "help_"),
    [
        ((*NOISE[:3], "--method", "dsgg"), "unknown method 'dsgg'", "did you mean 'dsg'?"),
        ((*NOISE[:1], "--teacher", "resnet1", "--method", "dsg"), "unknown teacher 'resnet1'", "'resnet"),
        ((*NOISE[:1], "--teacher", "net.toml", "--method", "dsg"), "looks like a path", "file:net.toml"),
        ((*NOISE[:1], "--teacher", "file:net.toml", "--method", "dsg"), "net.toml", ""),
        ((*NOISE[:1], "--teacher", "cifar10:resnet20", "--method", "dsg"), "without weights", "--weights"),
        ((*NOISE, "--set", "colour=1"), "noise has no option 'colour'", "one of"),
        ((*NOISE, "--set", "colour"), "--set colour", "key=value"),
        ((*NOISE, "--real", "embedded:digits"), "--real embedded:digits", "noise reads no images"),
        ((*NOISE, "--weights", "w.pt"), "--weights w.pt", "has its own weights"),
        ((*NOISE, "--batch", 0), "batch", "greater than or equal to 1"),
        ((*NOISE, "--seed", -1), "seed", "greater than or equal to 0"),
        ((*NOISE, "--threads", 0), "threads", "greater than or equal to 1"),
        ((*NOISE, "--threads", 10**8), "threads", "less than or equal to 1024, not 100000000"),
        ((*NOISE, "--threads", 2**63), "threads", "less than or equal to 1024"),
        ((*NOISE, "--count", 10**13), "count", "less than or equal to 1000000"),
        ((*NOISE, "--out", ""), "--out ''", "the name of a file or folder"),
        ((*NOISE, "--out", "/"), "--out /", "a folder other than the root"),
        ((*NOISE, "--out", os.fsdecode(b"\xff")), r"--out '\udcff'", "a name in UTF-8"),
        (("import", "embedded:digits:val", "--out", "."), "is the current folder", "a new folder"),
        (("import", "embedded:digits:val", "--out", ".."), "is in the way", "another --out"),
        ((*NOISE[:3], "--method", "zeroq", "--set", f"iterations={'9' * 5000}"), "zeroq: iterations", "..."),
        ((*NOISE[:3], "--method", "zeroq", "--set", f"iterations={'[' * 5000}"), "zeroq: iterations", "..."),
        ((*NOISE[:3], "--method", "zeroq", "--iterations", 10**12), "--iterations", "1 to 10000000"),
        ((*FIT, "embedded:digits:val#labels=20-999999999"), "no image of a label 20 to 999999999", ""),
        ((*NOISE, "--precision", "fp8"), "--precision fp8", "auto, fp32, bf16"),
        ((*NOISE, "--compile", "maybe"), "--compile maybe", "auto, on, off"),
        ((*NOISE, "--device", "tpu"), "--device tpu", "cpu, cuda"),
        ((*NOISE[:3], "--method", "dsg", "--iterations", 0), "iterations", "greater than or equal to 1"),
        ((*FIT, "nowhere"), "nowhere does not exist", "class folders"),
        ((*FIT, "embedded:digits", "--bits", "W1A9"), "bits 'W1A9'", "W1..W8"),
        ((*FIT, "embedded:digits", "--bits", "W1A4"), "W1A4 with student ptq", "at least W2A2"),
        ((*FIT, "embedded:digits", "--widths", "nowhere.csv"), "widths nowhere.csv", "a CSV file"),
        ((*FIT, "embedded:digits", "--student", "pqt"), "unknown student 'pqt'", "'ptq'"),
        ((*FIT, "embedded:digits", "--set", "x=1"), "student ptq has no option 'x'", "one of"),
        ((*FIT, "embedded:digits", "--passes", "equalise"), "unknown pass 'equalise'", "fold, relu6-to-relu"),
        ((*FIT, "embedded:digits", "--passes", "equalize"), "without pass fold", "fold,equalize"),
        ((*FIT, "embedded:digits", "--passes", "adapt-bn"), "ptq takes no pass adapt-bn", "folds"),
        (("run", "nothing"), "unknown recipe 'nothing'", "zsq list recipes"),
        (("run", "digits", "--budget-hours", -1), "--budget-hours -1", "0 or more"),
        (("run", "nothing.toml"), "nothing.toml cannot be read", "TOML"),
        (("list", "models"), "zsq list models", "methods, teachers, timm, students, passes, recipes"),
        (("verify", "nowhere"), "nowhere does not exist", "run folder"),
        (("inspect", "nowhere"), "nowhere does not exist", "run folder"),
        (("quantize", *DIGITS), "Missing option", "see `zsq quantize --help`"),
        ((*NOISE, "--bogus", 1), "No such option: --bogus", "see `zsq generate --help`"),
        ((*NOISE, "--count", "many"), "Invalid value for", "--count"),
        (("fabricate",), "No such command 'fabricate'", "see `zsq --help`"),
        (("verify",), "Missing argument 'DIR'", "see `zsq verify --help`"),
    ],
    ids=lambda value: ascii(" ".join(map(str, value[-2:])))[:60] if isinstance(value, tuple) else "",
)
def test_wrong_call(arguments, found, help_, capsys):
    outcome = call(capsys, *arguments)
    complaint = outcome.complaint()
    assert outcome.status == USAGE
    assert found in complaint
    assert help_ in complaint


def test_images_of_another_shape(made, capsys):
    outcome = call(capsys, *FIT, made / "colour")
    assert outcome.status == USAGE
    assert "3x32x32" in outcome.complaint()
    assert "1x32x32" in outcome.complaint()


@pytest.mark.parametrize("command", [("verify",), ("inspect",), FIT], ids=lambda command: command[0])
def test_empty_folder(command, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    outcome = call(capsys, *command, tmp_path / "empty")
    assert outcome.status == USAGE
    assert "holds no" in outcome.complaint()


def damaged_copy(made, folder, damage):
    """The digits run in `folder`, with its shard changed by `damage`."""
    (folder / "shards").mkdir(parents=True)
    (folder / "manifest.json").write_bytes((made / "digits/manifest.json").read_bytes())
    data = bytearray((made / "digits/shards/shard-00000.h5").read_bytes())
    (folder / "shards/shard-00000.h5").write_bytes(damage(data))
    return folder


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    """One bit of an image."""
    data[len(data) - 4000] ^= 4
    return data


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("command", [("verify",), ("inspect",), FIT], ids=lambda command: command[0])
def test_damaged_shard(command, damage, made, tmp_path, capsys):
    folder = damaged_copy(made, tmp_path / "damaged", damage)
    outcome = call(capsys, *command, folder)
    assert outcome.status == (FAILED if command == ("verify",) else USAGE)
    assert "shard-00000.h5" in outcome.complaint()


def test_intact_shard_is_accepted(made, tmp_path, capsys):
    folder = damaged_copy(made, tmp_path / "copy", lambda data: data)
    outcome = call(capsys, "verify", folder)
    assert (outcome.status, outcome.err) == (0, "")
    assert "8 images in 1 shard, all intact" in outcome.out


def test_run_without_manifest(made, tmp_path, capsys):
    folder = damaged_copy(made, tmp_path / "unfinished", lambda data: data)
    (folder / "manifest.json").unlink()
    outcome = call(capsys, "verify", folder)
    assert outcome.status == USAGE
    assert "--resume" in outcome.complaint()
    assert "the run is not finished" in call(capsys, "inspect", folder).out
    assert "unfinished: no manifest.json" in call(capsys, *FIT, folder).err
    assert "not finished" not in call(capsys, "inspect", made / "digits").out


def test_evaluation_images_without_labels_are_said(made, capsys):
    outcome = call(capsys, *FIT, made / "digits", "--eval", made / "digits", "--bits", "W8A8")
    assert outcome.err.count("has no labels: accuracy is not measured") == 1
    labelled = call(capsys, *FIT, made / "digits", "--eval", "embedded:digits:val")
    assert "no labels" not in labelled.err


def test_weights_of_another_architecture(made, capsys):
    weights = made / "other.pt"
    outcome = call(
        capsys, "generate", "--teacher", "cifar10:resnet20", "--weights", weights, "--method", "dsg"
    )
    assert outcome.status == USAGE
    assert "other.pt" in outcome.complaint()


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickle_that_would_run_code(protocol, tmp_path, capsys):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(pickle.dumps({"state_dict": Code()}, protocol))
    outcome = call(
        capsys, "generate", "--teacher", "cifar10:resnet20", "--weights", weights, "--method", "dsg"
    )
    assert outcome.status == USAGE
    assert "weights.pt" in outcome.complaint()
    assert not (tmp_path / "it-ran").exists()


def test_default_weights_without_network(monkeypatch, capsys):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    outcome = call(capsys, "generate", "--teacher", "resnet18", "--method", "dsg")
    assert outcome.status == FAILED
    said, complaint = outcome.err.splitlines()
    assert said.startswith("warning: default weights of resnet18 are downloaded from https://")
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in complaint
    assert "sha256 starts with f37072fd" in complaint
    assert "--weights FILE" in complaint


def test_method_for_batch_norm_with_a_teacher_without(tmp_path, capsys):
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1(num_classes=3).state_dict(), tmp_path / "squeezenet.pt")
    teacher = ("--teacher", "squeezenet1_1", "--weights", tmp_path / "squeezenet.pt")
    outcome = call(capsys, "generate", *teacher, "--method", "dsg", "--count", 2)
    assert outcome.status == USAGE
    assert "squeezenet1_1" in outcome.complaint()
    assert not (tmp_path / "outputs").exists()


def test_folder_in_the_way(made, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    outcome = call(capsys, *NOISE, "--out", tmp_path / "full")
    assert outcome.status == USAGE
    assert "is not empty" in outcome.complaint()
    resumed = call(capsys, *NOISE, "--out", tmp_path / "full", "--resume")
    assert resumed.status == USAGE
    assert "run.json" in resumed.complaint()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_set_given_twice_is_no_second_draw(made, tmp_path, capsys):
    """Also by another name: intervals would be of one draw."""
    (tmp_path / "again").symlink_to(made / "digits")
    sets = ("--shards", made / "digits", "--shards", tmp_path / "again")
    sources = ("--real", "embedded:digits", "--eval", "embedded:digits:val", "--out", tmp_path / "gap")
    outcome = call(capsys, "gap", *DIGITS, *sets, *sources, "--student", "ptq", "--bits", "W4A4")
    assert outcome.status == USAGE
    assert "hold the same images; expected each set once" in outcome.complaint()
    assert not (tmp_path / "gap").exists()


@pytest.mark.parametrize("suffix", ["png", "zip"])
def test_text_called_an_image(suffix, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / f"photos/letter.{suffix}").write_text("Dear all")
    images = tmp_path / "photos" / (f"letter.{suffix}" if suffix == "zip" else "")
    outcome = call(capsys, *FIT, images)
    assert outcome.status == USAGE
    assert f"letter.{suffix} cannot be read" in outcome.complaint()
    assert " at 0x" not in outcome.complaint()


def test_file_in_place_of_the_folder(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    for out, found in (
        ("taken", "taken: a file is in the way"),
        ("taken/within", "taken is a file; expected a folder"),
    ):
        outcome = call(capsys, *NOISE, "--out", tmp_path / out)
        assert outcome.status == USAGE
        assert found in outcome.complaint()
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "option"),
    [
        (("quantize", *DIGITS, "--bits", "W8A8"), "--onnx"),
        (("quantize", *DIGITS, "--bits", "W8A8"), "--pt2"),
        (("audit", *DIGITS, "--shards", "x", "--train", "x", "--holdout", "x"), "--out"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_folder_in_place_of_a_file(line, option, tmp_path, capsys):
    outcome = call(capsys, *line, option, tmp_path)
    assert outcome.status == USAGE
    assert outcome.complaint() == f"{option} {tmp_path} is a folder; expected a file"


def test_images_of_the_fit_that_are_scored_too_are_said(capsys):
    val = "embedded:digits:val"
    outcome = call(capsys, *FIT, val, "--count", 8, "--eval", val)
    assert outcome.status == 0
    assert f"{val}: fit and evaluation share 8 images" in outcome.err


@pytest.mark.parametrize("option", ["--out", "--onnx", "--pt2"])
def test_places_that_take_no_file_are_refused_before_the_fit(option, made, capsys, monkeypatch):
    """Also where the user is root."""
    monkeypatch.setattr("zsq.students.ptq.PTQ.run", lambda *_: pytest.fail("fitted"))
    outcome = call(capsys, *FIT, made / "digits", option, "/proc/none/student")
    assert outcome.status == FAILED
    assert f"{option} /proc/none/student: cannot write there" in outcome.complaint()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (("--seed", 1), "seed = 1"),
        (("--batch", 4), "batch = 4"),
        (("--shard-size", 4), "shard_size = 4"),
        (("--precision", "bf16"), "precision = bf16"),
        (("--method", "zeroq"), "method = zeroq"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_resume_with_another_option(change, names, made, capsys):
    outcome = call(capsys, *NOISE, "--out", made / "digits", "--resume", *change)
    assert outcome.status == USAGE
    assert names in outcome.complaint()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (RECIPE + 'colour = "red"\n', "colour"),
        (RECIPE.replace('"embedded:digits"\n', '"${ZSQ_NOT_SET}/images"\n'), "${ZSQ_NOT_SET} is not set"),
        (RECIPE.replace("count = 8", "count = 0"), "generate.count"),
        (RECIPE.replace("count = 8", "count = 8000"), "1089 images"),
        (RECIPE.replace('"noise"', '"nosie"'), "unknown method 'nosie'"),
        (RECIPE.replace('"ptq"', '"pqt"'), "unknown student 'pqt'"),
        (RECIPE.replace("W4A4", "W4"), "bits 'W4'"),
        (RECIPE + "[", "is not TOML"),
        (RECIPE.replace('[{ name = "ptq", bits = "W4A4" }]', "[]"), "students"),
        (
            RECIPE.replace('{ method = "noise" }', '{ method = "noise" }, { method = "noise" }'),
            "2 sources called 'noise'",
        ),
    ],
    ids=["key", "variable", "count", "images", "method", "student", "bits", "toml", "nothing", "twice"],
)
def test_wrong_recipe(text, found, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(text)
    outcome = call(capsys, "run", tmp_path / "mine.toml", "--out", tmp_path / "run")
    assert outcome.status == USAGE
    assert not (tmp_path / "run").exists()
    assert found in outcome.complaint()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("--shards", "nowhere"), "nowhere does not exist"),
        (("--seeds", 0), "seeds: Input should be greater than or equal to 1, not 0"),
        (("--seeds", 99999999999), "seeds: Input should be less than or equal to 1000"),
        (("--count", -1), "count: Input should be greater than or equal to 1, not -1"),
        (("--set", "lsq-kd.iterations=3"), "--set lsq-kd.iterations"),
        (("--count", 2000), "1089 images"),
        (("--bits", "W4A4"), "is named twice"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_wrong_gap(change, found, made, tmp_path, capsys):
    sources = ("--shards", made / "digits", "--real", "embedded:digits", "--eval", "embedded:digits:val")
    student = ("--student", "ptq", "--bits", "W4A4", "--out", tmp_path / "gap")
    outcome = call(capsys, "gap", *DIGITS, *sources, *student, *change)
    assert outcome.status == USAGE
    assert found in outcome.complaint()


@pytest.mark.parametrize("given", [(), ("--images", "embedded:digits"), ("--layers", 2)])
def test_a_path_that_is_not_there_is_said_whatever_else_is_asked(given, capsys):
    outcome = call(capsys, "inspect", "studnet", *given)
    assert outcome.status == USAGE
    assert outcome.complaint().startswith("studnet does not exist; expected a run folder, or")
    assert "a saved student" in outcome.complaint()


@pytest.mark.parametrize("option", ["--onnx", "--pt2"])
def test_a_file_of_another_option_is_no_place_for_a_student(option, made, capsys):
    """It would be a folder of that name."""
    name = f"student.{option[2:]}"
    outcome = call(capsys, *FIT, made / "digits", "--out", name)
    assert outcome.status == USAGE
    assert f"expected a folder, or NAME.safetensors; {option} {name} writes" in outcome.complaint()


def test_a_folder_is_no_teacher(tmp_path, capsys):
    (tmp_path / "mynet").mkdir()
    outcome = call(capsys, *NOISE[:1], "--teacher", "mynet")
    assert outcome.status == USAGE
    assert outcome.complaint().startswith("teacher 'mynet' looks like a path; expected --teacher file:mynet")
