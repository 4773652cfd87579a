"""Sets that should have no image in common: refused where they are the same, warned of where some are."""

import warnings

import numpy as np
import pytest
from commands import call

import zsq
from zsq.core.errors import MismatchError
from zsq.recipefile import load_recipe
from zsq.teacher.digits import load_digits_images
from zsq.workflow import recipe_protocol

DIGITS = ("--teacher", "embedded:digits")
PARTS = {"a": (0, 60), "b": (60, 120), "b-of-a": (50, 110), "in-a": (5, 25)}
RECIPE = """
title = "t"
real = "a.npz"
eval = "embedded:digits:test"
teacher = { name = "embedded:digits" }
generate = { count = 8, shard_sets = 1 }
sources = [{ method = "noise" }]
students = [{ name = "ptq", bits = "W4A4" }]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labelled digits as files and as shard sets."""
    path = tmp_path_factory.mktemp("sets")
    pixels, labels = load_digits_images("train")
    for name, (first, last) in PARTS.items():
        images = pixels[first:last].permute(0, 2, 3, 1).numpy()
        np.savez(path / f"{name}.npz", images=images, labels=labels[first:last].numpy())
        zsq.import_images(path / f"{name}.npz", path / name)
    # The same images under another name, in another order.
    np.savez(path / "again.npz", images=pixels[:60].flip(0).permute(0, 2, 3, 1).numpy())
    zsq.import_images(path / "again.npz", path / "again")
    return path


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    """Where the sets are; no comparison goes further than what is said of them."""

    def stopped(*_):
        raise MismatchError("stopped before the fits")

    monkeypatch.chdir(folder)
    monkeypatch.setattr("zsq.workflow.opened_bench", stopped)


def audit(capsys, shards, train, holdout):
    sources = ("--shards", shards, "--train", train, "--holdout", holdout)
    return call(capsys, "audit", *DIGITS, *sources, "--out", "audit.json")


def gap(capsys, *sets, real="b.npz"):
    shards = [part for name in sets for part in ("--shards", name)]
    fit = ("--student", "ptq", "--bits", "W8A8", "--seeds", 1, "--count", 20, "--out", "gap")
    return call(capsys, "gap", *DIGITS, *shards, "--real", real, "--eval", "embedded:digits:val", *fit)


@pytest.mark.parametrize("other", ["a.npz", "a", "again.npz", "in-a.npz"])
def test_members_that_are_held_out_too_are_refused(other, capsys):
    outcome = audit(capsys, "b", "a.npz", other)
    assert outcome.status == 2
    assert f"the held-out images {other} are the same; expected held-out images" in outcome.complaint()


def test_some_members_that_are_held_out_too_are_warned_of(capsys):
    outcome = audit(capsys, "in-a", "a.npz", "b-of-a.npz")
    assert outcome.status == 0
    assert "warning: training and held-out images share 10 images" in outcome.err


def test_a_set_that_holds_held_out_images_is_warned_of(capsys):
    assert "a and the held-out images share 20 images" in audit(capsys, "a", "b.npz", "in-a.npz").err


def test_images_apart_are_not_warned_of(folder):
    with warnings.catch_warnings(action="error"):
        zsq.audit("embedded:digits", "b", "in-a.npz", "embedded:digits:test")


def test_a_recipe_says_the_same(tmp_path):
    (tmp_path / "run.toml").write_text(
        RECIPE.replace("a.npz", "embedded:digits")
        + '[audit]\ntrain = "embedded:digits:val"\nholdout = "embedded:digits:val"\n'
    )
    with pytest.raises(MismatchError, match="held-out images embedded:digits:val are the same"):
        recipe_protocol(load_recipe(str(tmp_path / "run.toml")))


def test_real_images_are_not_compared_with_themselves(capsys):
    outcome = gap(capsys, "in-a", real="in-a.npz")
    assert outcome.status == 2
    assert "the images of in-a are those of --real; expected a set to compare" in outcome.complaint()


def test_real_images_in_a_set_are_warned_of(capsys):
    outcome = gap(capsys, "in-a", real="a.npz")
    assert "in-a and the real images share" in outcome.err


def test_evaluation_images_in_a_set_are_warned_of(tmp_path, capsys):
    zsq.import_images("embedded:digits:val", tmp_path / "scored")
    outcome = gap(capsys, tmp_path / "scored")
    assert f"{tmp_path / 'scored'}: fit and evaluation share 20 images" in outcome.err


def test_the_same_set_in_another_order_is_no_second_draw(capsys):
    zsq.import_images("a.npz", "whole")
    shards = ("--shards", "whole", "--shards", "again", "--count", 60)
    sources = ("--real", "embedded:digits", "--eval", "embedded:digits:val", "--out", "gap")
    outcome = call(capsys, "gap", *DIGITS, *shards, *sources, "--student", "ptq", "--bits", "W8A8")
    assert outcome.status == 2
    assert "the sets whole and again hold the same images" in outcome.complaint()


def test_sets_that_overlap_are_warned_of(capsys):
    outcome = gap(capsys, "a", "in-a", real="embedded:digits:test")
    assert "the sets a and in-a share 15 images: intervals come out too narrow" in outcome.err
