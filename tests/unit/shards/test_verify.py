import hashlib
import json
from dataclasses import replace

import pytest

from zsq.core.errors import ImagesError, ShardError
from zsq.shards.manifest import write_manifest
from zsq.shards.schema import shard_name
from zsq.shards.verify import DamageError, VerifyResult, verify_run, verify_shard
from zsq.shards.writer import write_shard


def shard(run, index):
    return run / "shards" / shard_name(index)


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def rewrite_manifest(run, change):
    path = run / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_intact_run_passes(make_run):
    run, _ = make_run()
    assert verify_run(run) == verify_run(run / "shards") == VerifyResult(num_images=11, num_shards=3)


def test_run_without_teacher_passes(make_run, make_content, provenance, manifest_of, tmp_path):
    imported = replace(provenance, teacher=None, teacher_sha256=None, method="photos")
    run = tmp_path / "imported"
    entry = write_shard(shard(run, 0), make_content(targets=False, logits=False), imported)
    write_manifest(run, manifest_of(imported, [entry], teacher=None))
    assert verify_run(run) == VerifyResult(num_images=4, num_shards=1)


def test_every_damage_is_listed_and_the_first_is_the_message(make_run):
    run, _ = make_run()
    flip(shard(run, 0), 3000)
    shard(run, 2).unlink()
    shard(run, 3).write_bytes(b"what is this")
    with pytest.raises(DamageError, match=r"shard-00000\.h5 has sha256 .*\(and 2 more\)") as caught:
        verify_run(run)
    assert [
        name for line in caught.value.damages for name in ("00000", "00002", "00003") if name in line
    ] == [
        "00000",
        "00002",
        "00003",
    ]
    assert caught.value.exit_code == 1


def test_swapped_shards_are_noticed(make_run):
    run, _ = make_run()
    first, second = shard(run, 0).read_bytes(), shard(run, 1).read_bytes()
    shard(run, 0).write_bytes(second)
    shard(run, 1).write_bytes(first)
    rewrite_manifest(
        run, lambda values: values["shards"][0].update(sha256=hashlib.sha256(second).hexdigest())
    )
    rewrite_manifest(run, lambda values: values["shards"][1].update(sha256=hashlib.sha256(first).hexdigest()))
    with pytest.raises(DamageError, match=r"shard-00000\.h5 holds other images"):
        verify_run(run)


MANIFEST_CHANGES = {
    "seed": lambda v: v.update(seed=8),
    "method": lambda v: v["method"].update(name="zeroq"),
    "options": lambda v: v["method"]["options"].update(lr=0.2),
    "data_read": lambda v: v.update(data_read="1 image per class"),
    "teacher": lambda v: v["teacher"].update(name="resnet18"),
    "teacher_sha256": lambda v: v["teacher"].update(weights_sha256="cd" * 32),
    "spec": lambda v: v["teacher"]["image_spec"].update(mean=[0.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("fact", MANIFEST_CHANGES)
def test_manifest_that_tells_another_story_is_noticed(fact, make_run):
    run, _ = make_run()
    rewrite_manifest(run, MANIFEST_CHANGES[fact])
    with pytest.raises(DamageError, match=f": {fact} is not that of the manifest"):
        verify_run(run)


def test_run_without_manifest_is_not_intact(make_run):
    run, _ = make_run(manifest=False)
    with pytest.raises(ShardError, match=r"manifest\.json does not exist"):
        verify_run(run)


def test_empty_folder_is_wrong_usage(tmp_path):
    with pytest.raises(ImagesError, match="no shards"):
        verify_run(tmp_path)


def test_one_shard_is_verified_with_and_without_its_hash(make_run, provenance):
    run, _ = make_run()
    path = shard(run, 1)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry, found = verify_shard(path, digest)
    assert (entry.file, entry.sha256, entry.num_images) == (path.name, digest, 4)
    assert found == replace(provenance, groups=(1,), first_image=4)
    assert verify_shard(path) == (entry, found)
    with pytest.raises(ShardError, match="sha256"):
        verify_shard(path, "0" * 64)
    flip(path, path.read_bytes().index(b"dsg"))
    with pytest.raises(ShardError, match=r"shard-00001\.h5"):
        verify_shard(path)
    with pytest.raises(ShardError, match="No such file"):
        verify_shard(shard(run, 9))
