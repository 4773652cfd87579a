from dataclasses import replace

import numpy as np
import pytest

from zsq.core.errors import OptionError, ShardError
from zsq.shards.schema import ShardEntry, ShardProvenance, check_content, shard_name


def broken(content, **arrays):
    return replace(content, **arrays)


def test_intact_content_passes(make_content, provenance):
    check_content(make_content(), provenance.spec, "shard-00000.h5")
    check_content(make_content(targets=False, logits=False), provenance.spec, "shard-00000.h5")
    content = make_content(attention=True)
    unknown = replace(content, head_similarity=content.head_similarity * np.float32(np.nan))
    assert (content.patch_entropy < 0).any()
    check_content(unknown, provenance.spec, "shard-00000.h5")


BREAKS = {
    "float pixels": lambda c: {"pixels": c.pixels.astype(np.float32)},
    "three dimensions": lambda c: {"pixels": c.pixels[:, 0]},
    "another size": lambda c: {"pixels": c.pixels[..., :-1]},
    "no images": lambda c: {"pixels": c.pixels[:0]},
    "int32 labels": lambda c: {"labels": c.labels.astype(np.int32)},
    "fewer labels": lambda c: {"labels": c.labels[:-1]},
    "label 10 of 10": lambda c: {"labels": np.full_like(c.labels, 10)},
    "label -2": lambda c: {"labels": np.full_like(c.labels, -2)},
    "big-endian labels": lambda c: {"labels": c.labels.astype(">i8")},
    "NaN logits": lambda c: {"logits": c.logits * np.float32(np.nan)},
    "no columns": lambda c: {"logits": c.logits[:, :0]},
    "float64 logits": lambda c: {"logits": c.logits.astype(np.float64)},
    "other columns": lambda c: {"logits": c.logits[:, :-1]},
    "negative distance": lambda c: {"bn_distance": -1 - c.bn_distance},
    "infinite distance": lambda c: {"bn_distance": c.bn_distance + np.float32(np.inf)},
    "infinite entropy": lambda c: {"patch_entropy": c.patch_entropy - np.float32(np.inf)},
    "negative similarity": lambda c: {"head_similarity": -1 - c.head_similarity},
    "fewer similarities": lambda c: {"head_similarity": c.head_similarity[:-1]},
    "targets sum to 2": lambda c: {"targets": c.targets * np.float16(2)},
    "negative targets": lambda c: {"targets": np.stack([1 - c.targets[:, 0], c.targets[:, 0]] * 5, 1) - 0.1},
    "NaN targets": lambda c: {"targets": c.targets * np.float16(np.nan)},
}


@pytest.mark.parametrize("case", BREAKS)
def test_each_broken_array_is_refused_in_one_line_naming_the_file(case, make_content, provenance):
    content = make_content(attention=True)
    content = broken(content, **BREAKS[case](content))
    with pytest.raises(ShardError, match=r"^shard-00042\.h5: ") as caught:
        check_content(content, provenance.spec, "shard-00042.h5")
    assert "\n" not in str(caught.value)


def test_distance_may_be_unknown(make_content, provenance):
    content = make_content()
    check_content(
        replace(content, bn_distance=content.bn_distance * np.float32(np.nan)), provenance.spec, "x"
    )


def test_rounded_distribution_over_many_classes_passes(make_content, provenance):
    content = make_content(targets=False, logits=False)
    exact = np.random.default_rng(0).dirichlet(np.ones(1000), content.num_images)
    check_content(replace(content, targets=exact.astype(np.float16)), provenance.spec, "x")


def test_shard_names_are_five_digits_and_end_there():
    assert shard_name(0) == "shard-00000.h5"
    assert shard_name(99_999) == "shard-99999.h5"
    with pytest.raises(OptionError, match="shard-size"):
        shard_name(100_000)


@pytest.mark.parametrize(
    "name",
    [
        "../shard-00000.h5",
        "shard-00000.h5\n",
        "shard-0.h5",
        "/shard-00000.h5",
        "shard-\u0660\u0660\u0660\u0660\u0660.h5",
        "shard-00000xh5",
    ],
)
def test_entry_takes_plain_names_only(name):
    with pytest.raises(ValueError, match="file"):
        ShardEntry(file=name, sha256="0" * 64, num_images=1)


def test_provenance_survives_its_attributes(provenance):
    assert ShardProvenance.from_attributes(provenance.attributes(), "x") == provenance
    imported = replace(provenance, teacher=None, teacher_sha256=None)
    assert ShardProvenance.from_attributes(imported.attributes(), "x") == imported


def test_shared_part_leaves_out_the_place_in_the_run(provenance):
    other = replace(provenance, groups=(3, 4), first_image=96)
    assert other.shared() == provenance.shared()
    assert replace(provenance, seed=8).shared() != provenance.shared()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"seed": -1}, "seed"),
        ({"spec": {"size": [1]}}, "spec"),
        ({"spec": {"size": [4, 4], "mean": [123.7] * 3, "std": [58.4] * 3}}, r"spec: .*pixels 0\.\.1"),
    ],
)
def test_foreign_attributes_are_refused(change, word, provenance):
    with pytest.raises(ShardError, match=word):
        ShardProvenance.from_attributes(provenance.attributes() | change, "shard-00000.h5")


def test_infinite_option_is_refused(provenance):
    with pytest.raises(OptionError, match="finite"):
        replace(provenance, options={"clip": float("inf")}).attributes()
