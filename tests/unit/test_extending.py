"""A set can be extended: what is there stays, byte for byte, and what is added depends on nothing else."""

import json

import pytest
from commands import Spoken
from ranks import in_two_ranks
from toys import make_teacher

from zsq.config import GenerateConfig, RuntimeConfig
from zsq.core.errors import RunFolderError, ShardError
from zsq.shards.manifest import read_manifest
from zsq.shards.reader import ShardDataset, read_shard
from zsq.shards.verify import verify_run
from zsq.synthesis import synthesize
from zsq.synthesis.resolved import counts_of, resolve

FIRST, SECOND, THIRD = 5, 12, 13


def config(method="zeroq", **changes):
    runtime = RuntimeConfig(threads=1, compile="off")
    values = {
        "teacher": "toy",
        "method": method,
        "count": FIRST,
        "batch": 2,
        "shard_size": 4,
        "iterations": 2,
    }
    return GenerateConfig(**({**values, "seed": 3, "runtime": runtime} | changes))


def files(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


def sizes(folder):
    return [entry.num_images for entry in read_manifest(folder).shards]


@pytest.fixture(params=["zeroq", "dgh", "gdfq", "intraq"])
def method(request):
    return request.param


@pytest.fixture
def first(tmp_path, tiny_teacher, method):
    return synthesize.generate(config(method), tmp_path / "run", teacher=tiny_teacher)


def extended(folder, teacher, method="zeroq", count=SECOND, **options):
    return synthesize.generate(config(method, count=count), folder, resume=True, teacher=teacher, **options)


def test_an_extension_keeps_every_shard_and_adds_some(first, tiny_teacher, method):
    before = files(first)
    extended(first, tiny_teacher, method)
    after = files(first)
    assert {name: after[name] for name in before} == before and len(after) > len(before)
    assert verify_run(first).num_images == SECOND
    manifest = read_manifest(first)
    assert manifest.config["counts"] == [FIRST, SECOND]
    assert manifest.config == json.loads((first / "run.json").read_text())
    images = ShardDataset(first).pixels().flatten(1)
    assert len(images.unique(dim=0)) == SECOND


def test_a_second_extension(first, tiny_teacher, method):
    before = files(extended(first, tiny_teacher, method))
    extended(first, tiny_teacher, method, THIRD)
    assert files(first).items() >= before.items()
    assert sizes(first)[-1] == 1 and read_manifest(first).config["counts"] == [FIRST, SECOND, THIRD]


def test_a_short_last_group_stays_and_what_is_added_has_groups_of_its_own(tmp_path, tiny_teacher):
    run = synthesize.generate(config(), tmp_path / "run", teacher=tiny_teacher)
    extended(run, tiny_teacher)
    groups = [read_shard(path)[1].groups for path in sorted((run / "shards").iterdir())]
    assert groups == [(0, 1), (2,), (3, 4), (5, 6)] and sizes(run) == [4, 1, 4, 3]


def test_a_kill_in_the_middle_changes_nothing(first, tmp_path, tiny_teacher, method, monkeypatch):
    whole = synthesize.generate(config(method), tmp_path / "whole", teacher=tiny_teacher)
    extended(whole, tiny_teacher, method)
    write, written = synthesize.write_shard, []

    def killed(path, *rest):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *rest)

    monkeypatch.setattr(synthesize, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        extended(first, tiny_teacher, method)
    assert files(first).keys() < files(whole).keys()
    with pytest.raises(ShardError, match="manifest"):
        verify_run(first)
    monkeypatch.undo()
    extended(first, tiny_teacher, method)
    assert files(first) == files(whole)
    assert read_manifest(first).shards == read_manifest(whole).shards


def test_a_first_run_that_was_not_finished_is_finished_first(tmp_path, tiny_teacher):
    whole, cut = (
        synthesize.generate(config(), tmp_path / name, teacher=tiny_teacher) for name in ("whole", "cut")
    )
    (cut / "manifest.json").unlink()
    (cut / "shards/shard-00001.h5").unlink()
    assert files(extended(cut, tiny_teacher)) == files(extended(whole, tiny_teacher))


def test_two_ranks_extend_as_one(tmp_path, tiny_teacher, monkeypatch):
    alone, split = (
        synthesize.generate(config(), tmp_path / name, teacher=tiny_teacher) for name in ("alone", "split")
    )
    extended(alone, tiny_teacher)
    teachers = [make_teacher(), make_teacher()]
    in_two_ranks(monkeypatch, lambda rank: extended(split, teachers[rank]))
    assert files(split) == files(alone)
    assert verify_run(split).num_images == SECOND


def test_what_the_first_run_had_decides_the_batch(tmp_path, tiny_teacher):
    run = synthesize.generate(config("gdfq", count=3, batch=None), tmp_path / "run", teacher=tiny_teacher)
    synthesize.generate(config("gdfq", batch=None), run, resume=True, teacher=tiny_teacher)
    assert verify_run(run).num_images == FIRST
    assert json.loads((run / "run.json").read_text())["batch"] == 3


def test_a_set_cannot_be_cut(tmp_path, tiny_teacher):
    run = synthesize.generate(config(), tmp_path / "run", teacher=tiny_teacher)
    before = files(run)
    with pytest.raises(RunFolderError, match=r"count = 4; expected at least the 5 images of .* not cut"):
        extended(run, tiny_teacher, count=4)
    assert files(run) == before and verify_run(run).num_images == FIRST


def test_without_a_count_a_run_keeps_its_own(tmp_path, tiny_teacher):
    run = synthesize.generate(config(), tmp_path / "run", teacher=tiny_teacher)
    extended(run, tiny_teacher)
    (run / "shards/shard-00002.h5").unlink()
    synthesize.generate(config(count=None), run, resume=True, teacher=tiny_teacher)
    assert verify_run(run).num_images == SECOND


def test_a_new_run_without_a_count_has_1024(tmp_path, tiny_teacher):
    for resume in (False, True):
        config_ = GenerateConfig(teacher="toy", method="noise")
        counts = counts_of(config_, tmp_path / "none", resume)
        assert resolve(config_, tmp_path, tiny_teacher, counts).plan.counts == (1024,)


def test_another_option_is_refused_before_anything_changes(tmp_path, tiny_teacher):
    run = synthesize.generate(config(), tmp_path / "run", teacher=tiny_teacher)
    with pytest.raises(RunFolderError, match="--resume with iterations = 3; expected 2"):
        synthesize.generate(config(count=SECOND, iterations=3), run, resume=True, teacher=tiny_teacher)
    assert verify_run(run).num_images == FIRST


@pytest.mark.parametrize("counts", ["many", [], [0], [5, "x"], None])
def test_a_damaged_record_of_counts_is_refused(tmp_path, tiny_teacher, counts):
    run = synthesize.generate(config(), tmp_path / "run", teacher=tiny_teacher)
    stored = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(stored | {"counts": counts}))
    with pytest.raises(RunFolderError, match="does not say how many images"):
        extended(run, tiny_teacher)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("zeroq", "5 images stay as they are, 7 are added"),
        ("dgh", "5 images stay as they are, 7 are added, a group of their own: "),
    ],
)
def test_one_line_says_it(tmp_path, tiny_teacher, method, said):
    run = synthesize.generate(config(method), tmp_path / "run", teacher=tiny_teacher)
    reporter = Spoken()
    extended(run, tiny_teacher, method, reporter=reporter)
    assert reporter.lines[0].startswith(said)
    assert reporter.lines[-1] == f"{SECOND} images in {len(files(run))} shards: {run}"
