"""Networks as people bring them, with the methods that match batch norm: a shard of each, or one line."""

import re
import warnings

import pytest
import torch
from toys import image_spec, make_teacher
from user_networks import (
    WRAPPED,
    FixedSize,
    FunctionalNorm,
    Nested,
    Normed,
    Pyramid,
    SignalNet,
    SignalStrip,
    TokenNorm,
    Upscaler,
    Volume,
)

from zsq.config import GenerateConfig
from zsq.core.errors import MismatchError, NoBatchNormError, ZsqError
from zsq.generators import METHODS, create, require
from zsq.shards.reader import ShardDataset
from zsq.shards.verify import verify_run
from zsq.synthesis.synthesize import generate

RUNTIME = {"compile": "off", "precision": "fp32"}
SIGNALS = image_spec(4, (64,), range=(-2.0, 2.0), mean=(0.0,) * 4, std=(1.0,) * 4)
WIDE = image_spec(12, (12, 20))

# Name -> how to build it, its images and its task.
CLASSIFIERS = {
    "frozen": (lambda c, k: Normed(c, k, "frozen"), image_spec(), "classify"),
    "tracking": (lambda c, k: Normed(c, k, "tracking"), image_spec(), "classify"),
    "functional": (FunctionalNorm, image_spec(), "classify"),
    "tokens": (TokenNorm, image_spec(), "classify"),
    "signals": (SignalNet, SIGNALS, "classify"),
    "height 1": (SignalStrip, image_spec(4, (1, 64)), "classify"),
    "volume": (Volume, image_spec(8, (12, 12)), "classify"),
    "12 channels": (Normed, WIDE, "classify"),
}
OTHERS = {
    "image": (lambda c, k: Upscaler(c), image_spec(), "image"),
    "pyramid": (lambda c, k: Pyramid(c), image_spec(), "detect"),
    **{kind: (lambda c, k, w=wrap: Nested(w), image_spec(), "other") for kind, wrap in WRAPPED.items()},
}
MATCHING = ("zeroq", "dsg", "dgh", "genie")


def teacher_of(name):
    build, spec, task = (CLASSIFIERS | OTHERS)[name]
    return make_teacher(build, spec, task=task)


def run(teacher, method, out, **values):
    config = GenerateConfig(
        teacher="x", method=method, count=3, **({"batch": 2, "iterations": 2, "runtime": RUNTIME} | values)
    )
    return generate(config, out, teacher=teacher)


def checked(folder, teacher):
    assert verify_run(folder).num_images == 3
    images = ShardDataset(folder)
    assert images.spec == teacher.spec
    pixels = images.pixels()
    assert pixels.shape == (3, *teacher.spec.shape) and pixels.float().std() > 0
    return images


@pytest.mark.parametrize("name", [*CLASSIFIERS, *OTHERS])
@pytest.mark.parametrize("method", MATCHING)
def test_methods_that_match_batch_norm_make_images(name, method, tmp_path):
    teacher = teacher_of(name)
    with warnings.catch_warnings():
        # Three iterations change no term of weight 1e-5, and of boxes there is no range of outputs.
        warnings.filterwarnings("ignore", ".*never changed.*")
        images = checked(run(teacher, method, tmp_path / "run"), teacher)
    assert images.provenance.method == method


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("method", ["deepinversion", "intraq", "gdfq", "qimera", "clusterq"])
def test_methods_with_classes_make_images_of_classifiers(name, method, tmp_path):
    teacher = teacher_of(name)
    checked(run(teacher, method, tmp_path / "run"), teacher)


@pytest.mark.parametrize("name", OTHERS)
def test_methods_with_classes_refuse_other_outputs_in_one_line(name):
    teacher = teacher_of(name)
    for method, cls in METHODS.items():
        if cls.facts.needs_labels:
            with pytest.raises(MismatchError, match="no classes; expected a classifier") as caught:
                require(method, teacher)
            assert "this teacher suits dgh" in str(caught.value)


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_where_nothing_is_stored_the_advice_holds(norm):
    teacher = make_teacher(lambda c, k: Normed(c, k, norm))
    with pytest.raises(NoBatchNormError) as caught:
        require("dgh", teacher)
    advice = str(caught.value).rpartition("; ")[2]
    named = [name for name in METHODS if re.search(rf"\b{name}\b", advice)]
    assert "noise" in named and advice.startswith("nothing but" if len(named) == 1 else "this teacher suits")
    for name in named:
        require(name, teacher)
    for name in set(METHODS) - set(named) - {"fdda"}:
        with pytest.raises(ZsqError):
            require(name, teacher)


def test_outputs_that_are_no_rows_are_not_stored(tmp_path):
    from zsq.shards.reader import read_shard

    for name, stored in (("image", False), ("frozen", True)):
        folder = run(teacher_of(name), "noise", tmp_path / name)
        content, _ = read_shard(next((folder / "shards").iterdir()))
        assert (content.logits is not None) == stored
        assert not torch.from_numpy(content.bn_distance).isnan().any()


def test_a_network_of_one_size_gets_the_full_resolution(tmp_path):
    teacher = make_teacher(FixedSize, image_spec(size=(96, 96)))
    with pytest.warns(UserWarning, match="takes images of one size alone, so all 6 iterations are at full"):
        method = create("deepinversion", teacher, iterations=6)
    assert [stage.iterations for stage in method.inversion(2).stages] == [6]
    assert method.options.low_resolution_iterations == 0
    with pytest.warns(UserWarning, match="one size alone"):
        checked(run(teacher, "deepinversion", tmp_path / "run"), teacher)
    fully = create("deepinversion", make_teacher(Normed, image_spec(size=(96, 96))), iterations=6)
    assert [stage.iterations for stage in fully.inversion(2).stages] == [4, 2]


def test_signals_are_halved_moved_and_cropped_along_their_side(tmp_path):
    teacher = make_teacher(SignalNet, image_spec(4, (96,)))
    checked(run(teacher, "deepinversion", tmp_path / "run"), teacher)
    method = create("deepinversion", teacher, iterations=6)
    assert not method.options.flip and method.options.low_resolution_iterations == 4
    assert not create("dgh", teacher).options.flip
