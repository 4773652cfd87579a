"""What `zsq inspect --teacher` says, so that a wrong card is seen before an hour is spent."""

import dataclasses

import numpy as np
import pytest
import torch
from commands import call

import zsq
from zsq.core.runtime import Runtime
from zsq.images.sources import images_for
from zsq.measure.teacherfacts import teacher_facts
from zsq.tasks import TASKS
from zsq.teacher import load_teacher

RUNTIME = Runtime.resolve(precision="fp32", compile="off", threads=1, device="cpu")


def test_facts_are_those_of_the_network():
    teacher = load_teacher("embedded:digits")
    images = images_for(teacher, "embedded:digits:test", labelled=True)
    facts = teacher_facts(teacher, RUNTIME, images)
    assert facts.num_parameters == sum(p.numel() for p in teacher.network.parameters())
    assert facts.num_batch_norms == sum(
        isinstance(m, torch.nn.BatchNorm2d) for m in teacher.network.modules()
    )
    logits = teacher.logits(teacher.spec.pixels_to_standard(images.pixels)).double().numpy()
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    confidence = (probabilities / probabilities.sum(1, keepdims=True)).max(1).mean()
    assert facts.labelled.confidence == pytest.approx(confidence, abs=1e-5)
    assert facts.score == pytest.approx(100 * (logits.argmax(1) == images.labels.numpy()).mean())
    assert (facts.labelled.num_images, facts.labelled.num_classes) == (470, 10)
    assert teacher_facts(teacher, RUNTIME).noise == facts.noise


def test_an_embedder_is_not_asked_how_sure_it_is():
    facts = teacher_facts(load_teacher("embedded:digits-features"), RUNTIME)
    assert facts.noise is None and facts.score is None
    assert "48 dimensions" in facts.lines()[0]
    one = dataclasses.replace(facts.teacher, task=TASKS["regress"](), num_outputs=1)
    assert dataclasses.replace(facts, teacher=one).lines()[0].endswith("task regress, 1 channel")


def test_the_command_says_what_suits_and_how_long_it_takes(capsys):
    said = call(
        capsys, "inspect", "--teacher", "embedded:digits-features", "--images", "embedded:digits:test"
    )
    lines = said.out.splitlines()
    assert said.status == 0 and lines[1].startswith("images 1x32x32; mean 0.3046, std 0.3236 of pixels 0..1")
    methods, students = (lines.index(line) for line in lines if "that suit it, and about" in line)
    suits = {line.split()[0] for line in lines[methods + 1 : students] if not line.startswith("    not")}
    assert {"noise", "zeroq", "dgh", "genie"} <= suits and "qimera" not in suits
    assert any(line.startswith("    not") and "qimera" in line for line in lines[methods:students])
    suits = {line.split()[0] for line in lines[students + 1 :] if not line.startswith("    not")}
    assert {"ptq", "quantface"} <= suits and "gdfq-ft" not in suits
    assert any(line.startswith("accuracy ") for line in lines)


def test_wrong_calls_are_one_line(capsys, tmp_path):
    run = zsq.generate("embedded:digits", "noise", count=2, out=tmp_path / "run")
    for arguments, word in (
        ((), "neither PATH nor --teacher"),
        ((tmp_path, "--teacher", "embedded:digits"), "one of them"),
        ((run, "--images", "x"), "with --teacher, or with a student and --images"),
        (("--teacher", "embedded:digits", "--images", "nowhere"), "nowhere does not exist"),
    ):
        said = call(capsys, "inspect", *arguments)
        assert word in said.complaint() and said.status == 2


def test_python_gives_the_same_lines():
    lines = zsq.inspect_teacher("embedded:digits", images="embedded:digits:val", count=64)
    measured = next(line for line in lines if line.startswith("accuracy"))
    assert float(measured.split()[1]) > 95 and measured.endswith("99.36 is stated")
    assert any(line.endswith("to make 64 images:") for line in lines)


def test_times_are_of_making_images_and_of_fits(capsys):
    said = call(capsys, "inspect", "--teacher", "embedded:digits").out
    assert "methods that suit it, and about how long each takes here to make 1024 images:" in said
    assert (
        "students that suit it, and about how long each takes here to be fitted on 1024 images at W8A8:"
        in said
    )
    assert "not repq, erq: teacher embedded:digits has no LayerNorm" in said
