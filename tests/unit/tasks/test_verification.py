"""Verification figures against numpy, scikit-learn and closed forms, and folds without identity leakage."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from zsq.core.errors import ImagesError
from zsq.tasks import verification
from zsq.tasks.verification import (
    Curve,
    area,
    balanced_accuracy,
    equal_error_rate,
    fold_decisions,
    identity_draws,
    make_pairs,
    metric_name,
    tar_at,
    verify_embeddings,
)


def embeddings(num_identities, per_identity, spread=0.5, dims=8, seed=0):
    random = np.random.default_rng(seed)
    centres = random.normal(size=(num_identities, dims))
    labels = np.repeat(np.arange(num_identities) * 3 + 7, per_identity)
    return centres.repeat(per_identity, 0) + spread * random.normal(size=(len(labels), dims)), labels


def scored(num_identities=12, per_identity=4, spread=0.9, seed=0):
    rows, labels = embeddings(num_identities, per_identity, spread, seed=seed)
    pairs = make_pairs(labels)
    return pairs.similarity(rows), pairs


def test_every_pair_once_with_its_cosine():
    rows, labels = embeddings(5, 3)
    pairs = make_pairs(labels)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    wanted = list(itertools.combinations(range(15), 2))
    assert list(zip(pairs.left_P.tolist(), pairs.right_P.tolist(), strict=True)) == wanted
    assert [labels[a] == labels[b] for a, b in wanted] == pairs.same_P.tolist()
    assert pairs.same_P.sum() == 5 * 3 and (~pairs.same_P).sum() == 10 * 9
    np.testing.assert_allclose(pairs.similarity(rows), [unit[a] @ unit[b] for a, b in wanted], atol=1e-12)


def test_a_row_of_zeros_is_similar_to_nothing():
    rows, labels = embeddings(4, 2)
    rows[0] = 0
    similarity = make_pairs(labels).similarity(rows)
    assert (similarity[:7] == 0).all() and np.isfinite(similarity).all()


def test_curve_is_scikit_learns():
    similarity, pairs = scored()
    similarity = similarity.round(1)  # many ties
    far, tar = Curve(similarity, pairs.same_P).rates()
    wanted_far, wanted_tar, _ = roc_curve(pairs.same_P, similarity, drop_intermediate=False)
    np.testing.assert_allclose(far, wanted_far)
    np.testing.assert_allclose(tar, wanted_tar)
    assert area(far, tar) == pytest.approx(roc_auc_score(pairs.same_P, similarity))


def test_area_is_the_share_of_pairs_in_order():
    similarity, pairs = scored(6, 3)
    genuine, impostor = similarity[pairs.same_P], similarity[~pairs.same_P]
    wins = (genuine[:, None] > impostor).mean() + 0.5 * (genuine[:, None] == impostor).mean()
    assert area(*Curve(similarity, pairs.same_P).rates()) == pytest.approx(wins)


@pytest.mark.parametrize("limit", [0.0, 1e-3, 1e-2, 0.1, 1.0])
def test_tar_accepts_no_more_impostors_than_allowed(limit):
    similarity, pairs = scored(20, 5)
    genuine, impostor = similarity[pairs.same_P], np.sort(similarity[~pairs.same_P])[::-1]
    allowed = int(limit * len(impostor) + 1e-9)
    wanted = (genuine > impostor[allowed]).mean() if allowed < len(impostor) else 1.0
    assert tar_at(*Curve(similarity, pairs.same_P).rates(), limit) == pytest.approx(wanted)


def test_equal_error_rate_of_known_scores():
    """One of ten genuine pairs lies below one of ten impostors: 10 %."""
    similarity = np.concatenate([np.arange(10) + 0.5 + 8, np.arange(10)])
    same = np.arange(20) < 10
    assert equal_error_rate(*Curve(similarity, same).rates()) == pytest.approx(0.1)
    random = np.random.default_rng(0)
    normal = np.concatenate([random.normal(2, 1, 20_000), random.normal(0, 1, 20_000)])
    # Both errors of two unit Gaussians at distance 2 are Phi(-1) half-way.
    assert equal_error_rate(*Curve(normal, np.arange(40_000) < 20_000).rates()) == pytest.approx(
        0.1587, abs=0.004
    )


def test_perfect_and_constant_scores():
    same = np.array([True, True, False, False])
    perfect = Curve(np.array([2.0, 3.0, 1.0, 0.0]), same).rates()
    assert (area(*perfect), tar_at(*perfect, 1e-3), equal_error_rate(*perfect)) == (1.0, 1.0, 0.0)
    constant = Curve(np.ones(4), same).rates()
    assert (area(*constant), tar_at(*constant, 1e-3), equal_error_rate(*constant)) == (0.5, 0.0, 0.5)


def test_weights_count_pairs_as_often():
    similarity, pairs = scored(6, 3)
    times = np.array([2, 0, 1, 3, 0, 1])
    weights = pairs.weights(times)
    repeated = np.repeat(np.arange(len(similarity)), weights)
    left, right = pairs.identity_N[pairs.left_P], pairs.identity_N[pairs.right_P]
    assert weights.tolist() == np.where(left == right, times[left], times[left] * times[right]).tolist()
    weighted = Curve(similarity, pairs.same_P).rates(weights)
    plain = Curve(similarity[repeated], pairs.same_P[repeated]).rates()
    for score in (area, equal_error_rate, lambda far, tar: tar_at(far, tar, 0.05)):
        assert score(*weighted) == pytest.approx(score(*plain))


@pytest.mark.parametrize("identities, folds", [(4, 2), (7, 3), (20, 10), (43, 10)])
def test_no_identity_is_in_two_folds(identities, folds):
    labels = np.repeat(np.arange(identities), 3)
    pairs = make_pairs(labels)
    inside = pairs.block_P >= 0
    assert len(set(pairs.block_P[inside])) == folds
    of_block = {}
    for block, a, b in zip(
        pairs.block_P[inside], labels[pairs.left_P[inside]], labels[pairs.right_P[inside]], strict=True
    ):
        of_block.setdefault(block, set()).update((a, b))
    assert sum(len(names) for names in of_block.values()) == identities
    assert set.union(*of_block.values()) == set(range(identities))
    assert all(pairs.same_P[inside & (pairs.block_P == block)].any() for block in range(folds))
    assert all((~pairs.same_P[inside & (pairs.block_P == block)]).any() for block in range(folds))


def test_identities_of_one_image_do_not_starve_a_fold():
    labels = np.array([0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9, 9])
    pairs = make_pairs(labels)
    assert [pairs.same_P[pairs.block_P == block].sum() for block in (0, 1)] == [2, 2]


def test_thresholds_come_from_the_other_folds():
    """By brute force over every threshold; the fold's own scores are never looked at."""
    similarity, pairs = scored(8, 3, spread=1.5)
    decisions = fold_decisions(similarity, pairs)
    assert np.isnan(decisions[pairs.block_P < 0]).all()
    for fold in range(4):
        test, train = pairs.block_P == fold, (pairs.block_P >= 0) & (pairs.block_P != fold)

        def youden(threshold, train=train):
            accepted = similarity[train] >= threshold
            same = pairs.same_P[train]
            return accepted[same].mean() - accepted[~same].mean()

        top = max(similarity[train], key=lambda s: (round(youden(s), 12), s))
        below = similarity[train][similarity[train] < top].max()
        wanted = (similarity[test] >= (top + below) / 2) == pairs.same_P[test]
        np.testing.assert_array_equal(decisions[test], wanted)
    counted = pairs.block_P >= 0
    shares = [decisions[counted & kind].mean() for kind in (pairs.same_P, ~pairs.same_P)]
    everything = np.ones(len(similarity))
    assert balanced_accuracy(decisions, pairs.same_P, everything) == pytest.approx(np.mean(shares))


def test_a_rate_that_the_pairs_cannot_show_is_none():
    rows, labels = embeddings(10, 3)  # 405 impostor pairs
    found = verify_embeddings(rows, rows, labels)
    assert found.metrics["tar@1e-3"] is None and found.metrics["tar@1e-2"] is None
    rows, labels = embeddings(20, 3)  # 1710
    found = verify_embeddings(rows, rows, labels)
    assert found.metrics["tar@1e-3"] is None and 0 < found.metrics["tar@1e-2"] <= 1
    assert "tar@1e-3" not in found.replicates_R
    assert list(found.metrics) == ["cosine", "tar@1e-3", "tar@1e-2", "auc", "eer", "accuracy"]


def test_scores_and_their_bootstrap(monkeypatch):
    """Every replicate is the score of the images of that draw, computed again from copied rows."""
    monkeypatch.setattr(verification, "BOOTSTRAP_DRAWS", 20)
    teacher, labels = embeddings(20, 4, spread=1.0)
    student = teacher + 0.5 * np.random.default_rng(5).normal(size=teacher.shape)
    found = verify_embeddings(student, teacher, labels)
    cosine = (student * teacher).sum(1) / np.linalg.norm(student, axis=1) / np.linalg.norm(teacher, axis=1)
    assert found.metrics["cosine"] == pytest.approx(cosine.mean())
    pairs = make_pairs(labels)
    draws = identity_draws(pairs)
    assert draws.shape == (20, 20) and (draws.sum(1) == 20).all()
    similarity = pairs.similarity(student)
    for index, times in enumerate(draws):
        repeated = np.repeat(np.arange(len(similarity)), pairs.weights(times))
        same, values = pairs.same_P[repeated], similarity[repeated]
        assert found.replicates_R["auc"][index] == pytest.approx(roc_auc_score(same, values))
        images = np.repeat(cosine, times[pairs.identity_N])
        assert found.replicates_R["cosine"][index] == pytest.approx(images.mean())
        impostor = np.sort(values[~same])[::-1]
        wanted = (values[same] > impostor[int(0.01 * len(impostor))]).mean()
        assert found.replicates_R["tar@1e-2"][index] == pytest.approx(wanted, abs=0.02)
    assert all(np.isfinite(draws).all() for draws in found.replicates_R.values())
    assert len(found.roc) == len(verification.ROC_FARS) and found.roc[-1] == 1.0
    assert list(found.roc) == sorted(found.roc)


def test_the_same_draws_for_every_student():
    _, labels = embeddings(5, 3)
    assert np.array_equal(identity_draws(make_pairs(labels)), identity_draws(make_pairs(labels + 100)))


def test_few_identities_and_many_images_are_one_line():
    with pytest.raises(ImagesError, match=r"1 identities, 1 of them with several.*at least 4 identities"):
        make_pairs(np.zeros(10))
    with pytest.raises(ImagesError, match="6 identities, 2 of them"):
        make_pairs(np.array([0, 1, 2, 3, 4, 4, 5, 5]))
    with pytest.raises(ImagesError, match=r"4000 evaluation images.*#labels=0-99"):
        make_pairs(np.repeat(np.arange(400), 10))


def test_names():
    assert [metric_name(far) for far in (1e-3, 1e-2, 1e-4)] == ["tar@1e-3", "tar@1e-2", "tar@1e-4"]
