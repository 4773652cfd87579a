"""What a run stores about its images, checked against the teacher itself; and what resuming repairs."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
from commands import Spoken
from torch import nn
from toys import image_spec, make_teacher, without_bn

from zsq.config import GenerateConfig, RuntimeConfig, config_sha256
from zsq.contract import SyntheticBatch
from zsq.core.errors import NoBatchNormError, RunFolderError, UsageError
from zsq.core.imagespec import ImageSpec
from zsq.generators.noise import Noise
from zsq.generators.zeroq import ZeroQ
from zsq.shards.manifest import read_manifest
from zsq.shards.reader import ShardDataset, read_shard
from zsq.shards.verify import verify_run
from zsq.synthesis import synthesize
from zsq.synthesis.resolved import resolve

COUNT, BATCH, SHARD = 10, 2, 4


def config(method="zeroq", **changes):
    values = {
        **{
            "teacher": "toy",
            "method": method,
            "count": COUNT,
            "batch": BATCH,
            "shard_size": SHARD,
            "seed": 3,
        },
        **{"iterations": 2, "runtime": RuntimeConfig(threads=1, compile="off")},
    }
    return GenerateConfig(**(values | changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_teacher):
    """A finished run of deepinversion, which asks for classes."""
    return synthesize.generate(
        config("deepinversion"), tmp_path_factory.mktemp("runs") / "run", teacher=tiny_teacher
    )


def contents(folder):
    return [read_shard(path) for path in sorted((folder / "shards").iterdir())]


def hashes(folder):
    files = sorted((folder / "shards").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def normalised(pixels, spec):
    """By hand, in float64."""
    mean, std = (np.array(values).reshape(1, -1, 1, 1) for values in (spec.mean, spec.std))
    return torch.from_numpy((pixels / 255 - mean) / std)


def expected_scores(teacher, pixels):
    """Logits and BN distances in float64: hooks on the BN layers, numpy for the statistics."""
    network = make_teacher(dtype=torch.float64).network
    inputs = []
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [m.register_forward_pre_hook(lambda m, args: inputs.append(args[0].numpy())) for m in layers]
    logits = network(normalised(pixels, teacher.spec)).numpy()
    for hook in hooks:
        hook.remove()
    distances = []
    for layer, x_NCHW in zip(layers, inputs, strict=True):
        mean_gap = x_NCHW.mean((2, 3)) - layer.running_mean.numpy()
        std_gap = np.sqrt(x_NCHW.var((2, 3)) + 1e-6) - np.sqrt(layer.running_var.numpy() + 1e-6)
        distances.append((mean_gap**2 + std_gap**2).mean(1))
    return logits, np.mean(distances, 0)


def test_logits_and_bn_distances_are_of_the_stored_pixels(run, tiny_teacher):
    for content, _ in contents(run):
        logits, distances = expected_scores(tiny_teacher, content.pixels)
        np.testing.assert_allclose(content.logits, logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(content.bn_distance, distances, rtol=1e-3, atol=1e-5)


def test_teacher_without_bn_has_no_distance(tmp_path):
    teacher = make_teacher(without_bn)
    folder = synthesize.generate(config("noise", count=3), tmp_path / "run", teacher=teacher)
    content, _ = contents(folder)[0]
    assert np.isnan(content.bn_distance).all()
    expected = teacher.network(normalised(content.pixels, teacher.spec).float()).detach()
    np.testing.assert_allclose(content.logits, expected, atol=1e-5)
    verify_run(folder)
    with pytest.raises(NoBatchNormError):
        resolve(config("zeroq"), tmp_path / "other", teacher)


def test_shards_hold_whole_groups_in_order(run):
    origins = [(content.num_images, origin.groups, origin.first_image) for content, origin in contents(run)]
    assert origins == [(4, (0, 1), 0), (4, (2, 3), 4), (2, (4,), 8)]


def test_provenance(run, tiny_teacher):
    for _, origin in contents(run):
        assert (origin.teacher, origin.teacher_sha256) == ("toy", tiny_teacher.weights_sha256)
        assert (origin.method, origin.seed, origin.data_read) == ("deepinversion", 3, "none")
        assert origin.spec == tiny_teacher.spec
        assert origin.options["iterations"] == 2


def test_hard_labels_are_stored_without_targets(run):
    for content, _ in contents(run):
        assert content.labels.dtype == np.int64
        assert ((content.labels >= 0) & (content.labels < 5)).all()
        assert content.targets is None


def test_method_without_labels(tmp_path, tiny_teacher):
    folder = synthesize.generate(config("zeroq", count=2), tmp_path / "run", teacher=tiny_teacher)
    assert contents(folder)[0][0].labels.tolist() == [-1, -1]


@pytest.fixture
def stored(tmp_path, tiny_teacher, monkeypatch):
    """What the first shard of a run holds whose method makes these batches."""

    def run(made):
        batches, sizes = iter(made), [len(batch.standard_NCHW) for batch in made]
        monkeypatch.setattr(Noise, "synthesize", lambda self, group, log: next(batches))
        asked = config("noise", count=sum(sizes), batch=sizes[0])
        return contents(synthesize.generate(asked, tmp_path / "run", teacher=tiny_teacher))[0][0]

    return run


def test_soft_targets_are_stored(stored):
    targets = torch.tensor([[0.5, 0.25, 0.25, 0, 0], [0, 0, 0, 0.125, 0.875], [1.0, 0, 0, 0, 0], [0.2] * 5])
    content = stored([SyntheticBatch(torch.zeros(4, 3, 16, 16), targets)])
    assert content.targets.dtype == np.float16
    np.testing.assert_array_equal(content.targets, targets.numpy().astype(np.float16))
    assert content.labels.tolist() == [0, 4, 0, 0]


def test_boxes_are_stored_with_their_image(stored):
    shown = [
        {"boxes": torch.full((n, 4), 1.0 + n) - torch.tensor([1.0, 1, 0, 0]), "labels": torch.arange(n)}
        for n in range(6)
    ]
    made = [SyntheticBatch(torch.zeros(2, 3, 16, 16), boxes=tuple(shown[i : i + 2])) for i in (0, 2)]
    found = stored(made).boxes
    assert [each["labels"].tolist() for each in found] == [[], [0], [0, 1], [0, 1, 2]]
    assert found[1]["boxes"].tolist() == [[1, 1, 2, 2]]


def test_a_manifest_says_how_the_labels_of_boxes_were_found(run, tmp_path, tiny_teacher, monkeypatch):
    assert read_manifest(run).method.labels is None
    monkeypatch.setattr(ZeroQ, "box_labels", "random")
    folder = synthesize.generate(config(), tmp_path / "run", teacher=tiny_teacher)
    assert read_manifest(folder).method.labels == "random"


def test_pixels_are_rounded_and_clipped(stored):
    standard = torch.linspace(-3, 3, 3 * 16 * 16).view(1, 3, 16, 16)
    expected = np.clip(np.rint((standard.double().numpy() * 0.25 + 0.5) * 255), 0, 255)
    found = stored([SyntheticBatch(standard)]).pixels.astype(int)
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.99
    assert (found.min(), found.max()) == (0, 255)


def test_manifest(run, tiny_teacher):
    manifest = read_manifest(run)
    assert (manifest.num_images, manifest.seed, manifest.data_read) == (COUNT, 3, "none")
    assert manifest.device == "cpu"
    assert manifest.runtime["threads"] == 1
    assert manifest.teacher.weights_sha256 == tiny_teacher.weights_sha256
    assert manifest.teacher.image_spec == ImageSpec(**tiny_teacher.spec.model_dump())
    assert manifest.config == json.loads((run / "run.json").read_text())
    assert manifest.config_sha256 == config_sha256(manifest.config)
    assert {entry.file: entry.sha256 for entry in manifest.shards} == hashes(run)
    assert [entry.num_images for entry in manifest.shards] == [4, 4, 2]
    assert manifest.seconds > 0
    assert manifest.image_iterations_per_second > 0
    assert (verify_run(run).num_images, verify_run(run).num_shards) == (COUNT, 3)


def test_estimate_comes_before_the_work(tmp_path, tiny_teacher):
    reporter = Spoken()
    synthesize.generate(config(), tmp_path / "run", teacher=tiny_teacher, reporter=reporter)
    assert reporter.lines[0].startswith("zeroq: 10 images x 2 teacher passes, about ")
    assert re.search(r" MB on disk, \d+\.\d GB memory$", reporter.lines[0])
    assert reporter.lines[-1] == f"10 images in 3 shards: {tmp_path / 'run'}"
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert [event["text"] for event in events if event["event"] == "say"] == reporter.lines
    assert [event["done"] for event in events if event["event"] == "step"][-1] == COUNT * 2


def test_same_seed_same_bytes_other_seed_other_images(tmp_path, tiny_teacher):
    def made(name, **changes):
        return hashes(synthesize.generate(config(**changes), tmp_path / name, teacher=tiny_teacher))

    first = made("first")
    torch.manual_seed(9)
    assert made("again") == first
    assert not set(made("other", seed=4).values()) & set(first.values())


def test_shard_size_does_not_change_the_images(tmp_path, tiny_teacher):
    pixels = []
    for shard_size in (2, 3, 64):
        folder = tmp_path / str(shard_size)
        synthesize.generate(config(shard_size=shard_size), folder, teacher=tiny_teacher)
        pixels.append(ShardDataset(folder).pixels())
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])


@pytest.mark.parametrize("damage", ["flip", "cut", "foreign", "missing"])
def test_resume_redoes_damaged_shards_and_says_so(damage, tmp_path, tiny_teacher):
    folder = synthesize.generate(config(), tmp_path / "run", teacher=tiny_teacher)
    before = hashes(folder)
    path = folder / "shards/shard-00001.h5"
    intact = path.read_bytes()
    times = {p.name: p.stat().st_mtime_ns for p in (folder / "shards").iterdir()}
    if damage == "missing":
        path.unlink()
    elif damage == "foreign":
        path.write_bytes((folder / "shards/shard-00000.h5").read_bytes())
    else:
        flipped = intact[:-3000] + bytes([intact[-3000] ^ 1]) + intact[-2999:]
        path.write_bytes(flipped if damage == "flip" else intact[:1000])
    reporter = Spoken()
    synthesize.generate(config(), folder, resume=True, teacher=tiny_teacher, reporter=reporter)
    assert hashes(folder) == before
    said = [line for line in reporter.lines if line.endswith("its images are made again")]
    assert len(said) == (damage != "missing")
    assert all("shard-00001.h5" in line for line in said)
    untouched = {p.name for p in (folder / "shards").iterdir() if p.stat().st_mtime_ns == times[p.name]}
    assert untouched == {"shard-00000.h5", "shard-00002.h5"}
    verify_run(folder)


def test_resume_of_a_finished_run_makes_nothing(tmp_path, tiny_teacher, monkeypatch):
    folder = synthesize.generate(config(), tmp_path / "run", teacher=tiny_teacher)
    monkeypatch.setattr(synthesize, "_write_unit", None)
    synthesize.generate(config(), folder, resume=True, teacher=tiny_teacher)
    verify_run(folder)


def test_resume_without_a_folder_starts(tmp_path, tiny_teacher):
    verify_run(synthesize.generate(config(), tmp_path / "new", resume=True, teacher=tiny_teacher))


def test_nothing_is_written_where_an_option_is_wrong(tmp_path, tiny_teacher):
    for wrong in (config("dsgg"), config(real="embedded:digits"), config(set={"colour": 1})):
        with pytest.raises(UsageError):
            synthesize.generate(wrong, tmp_path / "run", teacher=tiny_teacher)
    assert not (tmp_path / "run").exists()


def test_another_file_of_weights_is_another_run(tmp_path, tiny_teacher):
    folder = synthesize.generate(config(), tmp_path / "run", teacher=tiny_teacher)
    other = make_teacher(spec=image_spec())
    object.__setattr__(other, "weights_sha256", "1" * 64)
    with pytest.raises(RunFolderError, match="weights_sha256"):
        synthesize.generate(config(), folder, resume=True, teacher=other)


def test_another_entry_of_the_same_file_is_another_run(tmp_path, tiny_teacher):
    """A card's `weights_key` changes the network and not the hash of the file."""
    folder = synthesize.generate(config(), tmp_path / "run", teacher=tiny_teacher)
    with pytest.raises(RunFolderError, match="network_sha256"):
        synthesize.generate(config(), folder, resume=True, teacher=make_teacher(spec=image_spec(), seed=1))


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_manifest_of_whole_shards_is_written_again(damage, tmp_path):
    settings, teacher = config(), make_teacher()
    run = synthesize.generate(settings, tmp_path / "run", teacher=teacher)
    whole = json.loads((run / "manifest.json").read_text())
    text = (run / "manifest.json").read_text()
    changed = text.replace(whole["shards"][0]["sha256"], "0" * 64) if damage == "other" else text[:100]
    (run / "manifest.json").write_text(changed)
    spoken = Spoken()
    synthesize.generate(settings, run, teacher=teacher, resume=True, reporter=spoken)
    assert any("manifest.json" in line and "written again" in line for line in spoken.lines)
    again = json.loads((run / "manifest.json").read_text())
    timed = ("seconds", "image_iterations_per_second")
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: v for k, v in whole.items() if k not in timed
    }
    verify_run(run)
