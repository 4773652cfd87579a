import json

import pytest
import torch

from zsq.contract import Teacher
from zsq.core.errors import ImagesError, ShardError
from zsq.shards.manifest import TeacherRecord, find_shards, read_manifest, write_manifest
from zsq.tasks.embed import Embed


def rewrite(run, change):
    path = run / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_manifest_is_read_back_from_the_run_and_from_its_shards_folder(make_run):
    run, _ = make_run()
    manifest = read_manifest(run)
    assert manifest == read_manifest(run / "shards") == read_manifest(str(run))
    assert manifest.num_images == 11
    assert [entry.num_images for entry in manifest.shards] == [4, 4, 3]


def test_equal_manifests_give_equal_bytes(make_run, tmp_path):
    run, _ = make_run()
    before = (run / "manifest.json").read_bytes()
    write_manifest(run, read_manifest(run))
    assert (run / "manifest.json").read_bytes() == before
    values = json.loads(before)
    assert list(values)[:2] == ["format_version", "zsq_version"]
    assert values["teacher"]["num_classes"] == 10
    assert values["shards"][0]["file"] == "shard-00000.h5"


def test_teacher_record_states_the_loaded_teacher(provenance):
    teacher = Teacher("t", torch.nn.Flatten(), provenance.spec, 128, "cd" * 32, task=Embed())
    record = TeacherRecord.of(teacher, accuracy=None)
    assert (record.num_outputs, record.num_classes, record.task) == (128, None, "embed")
    assert record.image_spec == provenance.spec


REFUSED = {
    "a path outside": lambda v: v["shards"][0].update(file="../../etc/passwd"),
    "another name": lambda v: v["shards"][0].update(file="shard-00001.h5"),
    "a wrong total": lambda v: v.update(num_images=12),
    "another version": lambda v: v.update(format_version=2),
    "an unknown key": lambda v: v.update(extra=1),
    "no hash": lambda v: v["shards"][1].update(sha256="x"),
    "no shards": lambda v: v.update(shards=[], num_images=0),
    "a missing key": lambda v: v.pop("method"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_foreign_manifests_are_refused_in_one_line(case, make_run):
    run, _ = make_run()
    rewrite(run, REFUSED[case])
    with pytest.raises(ShardError, match=r"manifest\.json") as caught:
        read_manifest(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000])
def test_files_that_are_no_manifest_are_refused(content, make_run):
    run, _ = make_run()
    (run / "manifest.json").write_bytes(content)
    with pytest.raises(ShardError, match="expected a zsq manifest"):
        read_manifest(run)


def test_absent_manifest_says_how_to_finish_the_run(make_run):
    run, _ = make_run(manifest=False)
    with pytest.raises(ShardError, match="--resume"):
        read_manifest(run)


def test_shards_are_found_in_order_under_either_name(make_run):
    run, _ = make_run()
    (run / "shards" / ".shard-00009.h5.0a0b0c0d.zsq.tmp").touch()
    (run / "shards" / "shard-1.h5").touch()
    for folder in (run, run / "shards"):
        found = find_shards(folder)
        assert (found.run, found.shards) == (run, run / "shards")
        assert [path.name for path in found.paths] == [f"shard-0000{index}.h5" for index in range(3)]


def test_folder_of_another_name_is_its_own_run(make_run, tmp_path):
    run, _ = make_run()
    (run / "shards").rename(tmp_path / "copied")
    assert find_shards(tmp_path / "copied").run == tmp_path / "copied"


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "empty shards"])
def test_folders_without_shards_are_wrong_usage(kind, tmp_path):
    folder = tmp_path / "run"
    if kind == "file":
        folder.touch()
    elif kind != "missing":
        (folder / "shards" if kind == "empty shards" else folder).mkdir(parents=True)
    with pytest.raises(ImagesError, match="run") as caught:
        find_shards(folder)
    assert caught.value.exit_code == 2
