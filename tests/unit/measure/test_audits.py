"""The audit names planted copies, stays silent on unrelated images, and its figures are those of numpy."""

import json

import numpy as np
import pytest
import torch
from commands import call
from sklearn.metrics import roc_auc_score
from toys import image_spec, make_teacher

import zsq
from zsq.contract import Teacher
from zsq.core.errors import MismatchError
from zsq.core.runtime import Runtime
from zsq.measure import audits
from zsq.measure.audits import audit_images, audit_json, membership
from zsq.tasks.other import Other
from zsq.teacher.digits import load_digits_images

PLANTED = {3: 11, 20: 2, 31: 40, 44: 0, 60: 55}  # place in the synthetic set -> training image


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(audits, "DRAWS", 50)


@pytest.fixture(scope="module")
def embedder():
    return zsq.load_teacher("embedded:digits-features")


@pytest.fixture(scope="module")
def digits():
    """Training, held-out and unrelated images of the same kind."""
    train, test = load_digits_images("train")[0], load_digits_images("test")[0]
    return train[:100], train[200:300], test[:64]


def planted(digits):
    train, _, others = digits
    synthetic = others.clone()
    for place, index in PLANTED.items():
        synthetic[place] = train[index]
    return synthetic


def test_five_planted_copies_among_64_are_named(embedder, digits):
    train, holdout, _ = digits
    found = audit_images(embedder, planted(digits), train, holdout, Runtime())
    assert found.named == sorted(PLANTED)
    for space in ("pixels", "features"):
        pairs = {s.synthetic: s.train for s in found.suspects if s.space == space}
        assert pairs == PLANTED
    assert all(suspect.ratio < 0.05 for suspect in found.suspects)
    assert (found.control.planted, found.control.named_exact) == (5, 5)


def test_altered_copies_are_named_too(embedder, digits):
    train, holdout, _ = digits
    noise = torch.randn(train.shape, generator=torch.Generator().manual_seed(0)) * 6
    altered = (train + noise).round().clamp(0, 255).to(torch.uint8)[:20]
    found = audit_images(embedder, altered, train, holdout, Runtime())
    assert found.named == list(range(20))
    assert found.control.named_altered == 5


def test_unrelated_images_raise_no_suspicion_and_the_control_still_fires(embedder, digits):
    train, holdout, others = digits
    found = audit_images(embedder, others, train, holdout, Runtime())
    assert found.named == [] and not found.suspects and found.resampled == "images"
    assert (found.control.named_exact, found.control.named_altered) == (5, 5)


def test_a_copy_of_an_image_that_the_owner_has_twice_is_named(embedder, digits):
    train, holdout, others = digits
    twice = torch.cat([train, train[:1]])
    found = audit_images(embedder, torch.cat([others[:5], train[:1]]), twice, holdout, Runtime())
    assert found.named == [5]


def test_distances_are_root_mean_squares_and_of_unit_rows(embedder, digits):
    train, holdout, others = digits
    found = audit_images(embedder, others, train, holdout, Runtime())

    def nearest(rows, to):
        return np.sqrt(((rows[:, None] - to) ** 2).mean(2)).min(1)

    levels = [pixels.flatten(1).numpy().astype(float) for pixels in (others, train, holdout)]
    pixels = found.spaces["pixels"]
    for figures, wanted in (
        (pixels.synthetic_to_train, nearest(levels[0], levels[1])),
        (pixels.synthetic_to_holdout, nearest(levels[0], levels[2])),
        (pixels.holdout_to_train, nearest(levels[2], levels[1])),
    ):
        np.testing.assert_allclose(figures, [wanted.min(), np.median(wanted), wanted.max()])
    wanted = roc_auc_score(
        np.arange(200) < 100, -np.concatenate([nearest(levels[k], levels[0]) for k in (1, 2)])
    )
    assert pixels.membership_auc == pytest.approx(100 * wanted)
    with torch.no_grad():
        rows = [
            torch.nn.functional.normalize(embedder.network(embedder.spec.pixels_to_norm(p))).double().numpy()
            for p in (others, train)
        ]
    distance = np.linalg.norm(rows[0][:, None] - rows[1], axis=2).min(1)
    assert found.spaces["features"].synthetic_to_train[1] == pytest.approx(np.median(distance), rel=1e-5)


def test_membership_of_a_set_made_from_the_training_images(embedder, digits):
    """Blurred training images lie nearer to their originals than to held-out ones."""
    train, holdout, _ = digits
    blurred = torch.nn.functional.avg_pool2d(train.float(), 3, 1, 1).round().to(torch.uint8)
    figures = audit_images(embedder, blurred, train, holdout, Runtime()).spaces["pixels"]
    assert figures.membership_auc > 85 and figures.membership_ci95[0] > 70


def test_membership_says_nothing_of_like_distances():
    random = np.random.default_rng(0)
    alone = np.arange(300)
    auc, (low, high) = membership(random.normal(size=300), random.normal(size=300), alone, alone)
    assert low < 50 < high and low < auc < high
    apart = membership(np.zeros(4), np.ones(5), np.arange(4), np.arange(5))
    assert apart == (100.0, (100.0, 100.0))


def test_images_of_few_people_are_few_observations(monkeypatch):
    """Distances follow the person alone: over images the interval misses 50 all the same."""
    monkeypatch.setattr(audits, "DRAWS", 400)
    random = np.random.default_rng(3)
    people = np.repeat(np.arange(6), 50)
    train, holdout = (random.normal(size=6)[people] + 0.01 * random.normal(size=300) for _ in range(2))
    auc, (low, high) = membership(train, holdout, np.arange(300), np.arange(300))
    again, (low_people, high_people) = membership(train, holdout, people, people)
    assert auc == again
    assert high_people - low_people > 3 * (high - low)
    assert not low < 50 < high and low_people < 50 < high_people


def test_features_of_a_classifier_enter_its_last_layer():
    teacher = make_teacher()
    pixels = torch.randint(256, (4, *teacher.spec.shape), dtype=torch.uint8)
    rows = audits._Embedder(teacher, Runtime()).spaces(pixels)[1]
    with torch.no_grad():
        pooled = teacher.network[:-1](teacher.spec.pixels_to_norm(pixels))
        wanted = torch.nn.functional.normalize(teacher.network[-1][:-1](pooled).double())
    np.testing.assert_allclose(rows, wanted.numpy(), atol=1e-6)
    assert not any(module._forward_pre_hooks for module in teacher.network.modules())


def test_wrong_images_are_one_line(embedder, digits):
    train, holdout, others = digits
    with pytest.raises(MismatchError, match=r"training images of shape \(100, 1, 16, 16\)"):
        audit_images(embedder, others, train[:, :, ::2, ::2], holdout, Runtime())
    with pytest.raises(MismatchError, match="1 held-out image"):
        audit_images(embedder, others, train, holdout[:1], Runtime())


def test_command_and_api_write_figures_alone(capsys, tmp_path, digits):
    train, holdout, _ = digits
    for name, pixels in (("set", planted(digits)), ("train", train), ("holdout", holdout)):
        labels = np.arange(len(pixels)) // 10
        np.savez(tmp_path / f"{name}.npz", images=pixels.permute(0, 2, 3, 1).numpy(), labels=labels)
    shards = tmp_path / "shards"
    zsq.import_images(tmp_path / "set.npz", shards)
    before = set(tmp_path.iterdir())
    arguments = [
        *("--teacher", "embedded:digits-features", "--shards", shards, "--threads", 1),
        *("--train", tmp_path / "train.npz", "--holdout", tmp_path / "holdout.npz"),
        *("--out", tmp_path / "audit.json"),
    ]
    outcome = call(capsys, "audit", *arguments)
    assert outcome.status == 0
    assert "it found 5 of 5 copies of training images" in outcome.out
    assert "5 of 64 synthetic images may be copies of a training image: 3, 20, 31, 44, 60" in outcome.out
    assert set(tmp_path.iterdir()) - before == {tmp_path / "audit.json"}
    stored = json.loads((tmp_path / "audit.json").read_text())
    assert stored["named"] == sorted(PLANTED) and stored["num_train"] == 100
    assert (tmp_path / "audit.json").stat().st_size < 10_000
    assert stored["resampled"] == "identities" and "] over identities" in outcome.out
    again = zsq.audit(
        "embedded:digits-features",
        shards,
        str(tmp_path / "train.npz"),
        str(tmp_path / "holdout.npz"),
    )
    assert json.loads(json.dumps(audit_json(again))).items() <= stored.items()


@pytest.mark.parametrize("missing", ["--shards", "--train", "--holdout"])
def test_missing_sources_are_one_line(missing, capsys, tmp_path):
    arguments = {
        **{"--teacher": "embedded:digits", "--shards": "embedded:digits:val", "--out": tmp_path / "a.json"},
        **{"--train": "embedded:digits:train", "--holdout": "embedded:digits:test"},
        missing: tmp_path / "nowhere",
    }
    outcome = call(capsys, "audit", *(part for pair in arguments.items() for part in pair))
    assert outcome.status == 2
    assert "nowhere does not exist" in outcome.complaint()
    assert not (tmp_path / "a.json").exists()


def test_spec_of_another_teacher_is_one_line(capsys, tmp_path):
    np.savez(tmp_path / "wide.npz", images=np.zeros((4, 8, 20, 1), np.uint8))
    outcome = call(
        capsys,
        *("audit", "--teacher", "embedded:digits", "--shards", tmp_path / "wide.npz"),
        *("--train", "embedded:digits", "--holdout", "embedded:digits:test", "--out", tmp_path / "a.json"),
    )
    assert outcome.status == 2 and "1x8x20" in outcome.complaint()


def test_networks_of_any_outputs_have_the_features_of_their_last_layer():
    class Maps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = torch.nn.Conv2d(3, 6, 3), torch.nn.Conv2d(6, 4, 1)

        def forward(self, x):
            maps = self.last(self.conv(x).relu())
            return {"maps": [maps, maps[..., ::2]]}

    teacher = Teacher("maps", Maps(), image_spec(), None, "0" * 64, task=Other())
    random = torch.Generator().manual_seed(0)
    own, train, holdout = (
        torch.randint(0, 256, (8, *teacher.spec.shape), generator=random, dtype=torch.uint8) for _ in range(3)
    )
    found = audit_images(teacher, own, train, holdout, Runtime())
    assert found.num_synthetic == 8
