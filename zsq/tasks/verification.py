"""Verification: do two images show one identity? Pairs, ROC curve, folds, and bootstrap over identities.

Suffixes: N images, D embedding dimensions, P pairs, I identities, R bootstrap draws. Similarity is the cosine
of two embeddings. Everything is float64 numpy; scores are shares here, 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.integrate import trapezoid
from sklearn.metrics import roc_curve
from sklearn.model_selection import GroupKFold

from zsq.core.errors import ImagesError
from zsq.core.seeding import numpy_generator

MAX_IMAGES = 3000  # 4.5 million pairs
MIN_IDENTITIES = 4  # two folds of two identities: each holds pairs of both kinds
NUM_FOLDS = 10
BOOTSTRAP_DRAWS = 1000
# False accepts that a false accept rate must leave over all pairs to be read off at all.
MIN_FALSE_ACCEPTS = 10
FARS = (1e-3, 1e-2)
# Where a ROC curve is stored and drawn: six points a decade.
ROC_FARS = tuple(float(f"{far:.4g}") for far in np.logspace(-4, 0, 25))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Every pair of images once: `left_P` with `right_P`, genuine where `same_P`, else impostor.

    `identity_N` counts identities from 0, in the order of their labels.
    """

    identity_N: np.ndarray
    left_P: np.ndarray
    right_P: np.ndarray
    same_P: np.ndarray

    @property
    def num_identities(self) -> int:
        """I."""
        return int(self.identity_N.max()) + 1

    @cached_property
    def block_P(self) -> np.ndarray:
        """Block of each pair whose identities are in one block, -1 for pairs across blocks.

        Identities of several images first, then the others, each by label, are dealt to the blocks in turn.
        An identity is thus in one block, and so is every pair that a block holds.
        """
        counts = np.bincount(self.identity_N)
        several = int((counts > 1).sum())
        order = np.argsort(counts < 2, kind="stable")
        block_I = np.empty(len(counts), int)
        block_I[order] = np.arange(len(counts)) % min(NUM_FOLDS, several // 2)
        left, right = (block_I[self.identity_N[side]] for side in (self.left_P, self.right_P))
        return np.where(left == right, left, -1)

    def similarity(self, embeddings_ND: np.ndarray) -> np.ndarray:
        """Cosine of each pair (P,)."""
        unit_ND = normalised(embeddings_ND)
        return (unit_ND @ unit_ND.T)[self.left_P, self.right_P]

    def weights(self, times_I: np.ndarray) -> np.ndarray:
        """(P,): how often each pair is there when identity i was drawn `times_I[i]` times.

        Copies of an identity stay apart: they make neither genuine nor impostor pairs with each other.
        """
        left = times_I[self.identity_N[self.left_P]]
        return np.where(self.same_P, left, left * times_I[self.identity_N[self.right_P]])


def make_pairs(labels_N: np.ndarray) -> Pairs:
    """All pairs of images with these identities.

    Raises:
        ImagesError: fewer than 4 identities of several images, or too many images.
    """
    _, identity_N, counts = np.unique(labels_N, return_inverse=True, return_counts=True)
    several = int((counts > 1).sum())
    if several < MIN_IDENTITIES:
        found = f"evaluation images of {len(counts)} identities, {several} of them with several images"
        raise ImagesError(found, f"at least {MIN_IDENTITIES} identities of 2 images to make pairs of")
    if len(labels_N) > MAX_IMAGES:
        found = f"{len(labels_N)} evaluation images make {len(labels_N) * (len(labels_N) - 1) // 2} pairs"
        raise ImagesError(found, f"at most {MAX_IMAGES} images", "keep fewer identities: SRC#labels=0-99")
    left_P, right_P = np.triu_indices(len(labels_N), 1)
    return Pairs(identity_N, left_P, right_P, identity_N[left_P] == identity_N[right_P])


def normalised(embeddings_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    embeddings_ND = np.asarray(embeddings_ND, np.float64)
    lengths = np.linalg.norm(embeddings_ND, axis=1, keepdims=True)
    return embeddings_ND / np.where(lengths > 0, lengths, 1)


class Curve:
    """The ROC of one set of similarities, for any weights of its pairs; sorted once."""

    def __init__(self, similarity_P: np.ndarray, same_P: np.ndarray) -> None:
        """Keep the order, from the most similar pair down; equal similarities are accepted together."""
        self.order_P = np.argsort(-similarity_P, kind="stable")
        self.same_P = same_P[self.order_P]
        self.ends = np.flatnonzero(np.diff(similarity_P[self.order_P], append=-np.inf))

    def rates(self, weights_P: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """False and true accept rates at every threshold, from accepting nothing to accepting all."""
        weights = np.ones(len(self.same_P)) if weights_P is None else weights_P[self.order_P]
        false = np.cumsum(np.where(self.same_P, 0, weights))[self.ends]
        true = np.cumsum(np.where(self.same_P, weights, 0))[self.ends]
        return np.append(0, false / false[-1]), np.append(0, true / true[-1])


def area(far: np.ndarray, tar: np.ndarray) -> float:
    """Area under the curve: the chance that a genuine pair is more similar than an impostor one."""
    return float(trapezoid(tar, far))


def tar_at(far: np.ndarray, tar: np.ndarray, limit: float) -> float:
    """The largest true accept rate whose false accept rate is at most `limit`."""
    return float(tar[np.searchsorted(far, limit * (1 + 1e-12), side="right") - 1])


def equal_error_rate(far: np.ndarray, tar: np.ndarray) -> float:
    """Where false accepts equal false rejects, linear between thresholds."""
    gap = far - (1 - tar)
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = gap[before] / (gap[before] - gap[after])
    return float(far[before] + share * (far[after] - far[before]))


def fold_decisions(similarity_P: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Whether each pair is decided right, 1.0 or 0.0, by a threshold chosen on the other folds; float (P,).

    Pairs across blocks are NaN: their identities belong to two folds. The chosen threshold has the largest
    mean of true accept and true reject rate, and lies halfway to the next lower similarity.
    """
    inside = np.flatnonzero(pairs.block_P >= 0)
    similarity, same, blocks = similarity_P[inside], pairs.same_P[inside], pairs.block_P[inside]
    right = np.empty(len(inside))
    for train, test in GroupKFold(len(np.unique(blocks))).split(inside, groups=blocks):
        threshold = _best_threshold(similarity[train], same[train])
        right[test] = (similarity[test] >= threshold) == same[test]
    decisions = np.full(len(similarity_P), np.nan)
    decisions[inside] = right
    return decisions


def _best_threshold(similarity: np.ndarray, same: np.ndarray) -> float:
    far, tar, thresholds = roc_curve(same, similarity, drop_intermediate=False)
    best = int(np.argmax(tar - far))
    return float((thresholds[best] + thresholds[min(best + 1, len(thresholds) - 1)]) / 2)


def balanced_accuracy(decisions_P: np.ndarray, same_P: np.ndarray, weights_P: np.ndarray) -> float:
    """Mean of the shares of genuine and of impostor pairs that are decided right."""
    counted = ~np.isnan(decisions_P)
    shares = [
        np.average(decisions_P[chosen], weights=weights_P[chosen])
        for chosen in (counted & same_P, counted & ~same_P)
    ]
    return float(np.mean(shares))


def metric_name(far: float) -> str:
    """`tar@1e-3`: true accept rate at a false accept rate."""
    return f"tar@{far:.0e}".replace("e-0", "e-")


@dataclass(frozen=True)
class Verification:
    """Scores of embeddings, 0..1.

    `metrics`: cosine to the teacher, TAR at each of `FARS` (None where the pairs are too few), AUC, EER and
    verification accuracy. `replicates_R`: the same over draws of identities. `roc`: TAR at `ROC_FARS`.
    """

    metrics: dict[str, float | None]
    replicates_R: dict[str, np.ndarray]
    roc: tuple[float, ...]


def verify_embeddings(student_ND: np.ndarray, teacher_ND: np.ndarray, labels_N: np.ndarray) -> Verification:
    """Score a student's embeddings of labelled images.

    The bootstrap draws identities with replacement, the same draws for every student of the same images, so
    that differences of replicates are paired. Thresholds of the folds are not chosen again for each draw.

    Raises:
        ImagesError: as `make_pairs`.
    """
    pairs = make_pairs(labels_N)
    similarity_P = pairs.similarity(student_ND)
    cosine_N = (normalised(student_ND) * normalised(teacher_ND)).sum(1)
    decisions_P = fold_decisions(similarity_P, pairs)
    curve = Curve(similarity_P, pairs.same_P)
    impostors = int((~pairs.same_P).sum())
    readable = [far for far in FARS if far * impostors >= MIN_FALSE_ACCEPTS]

    def scores(times_I: np.ndarray) -> dict[str, float]:
        weights_P = pairs.weights(times_I)
        rates = curve.rates(weights_P)
        return {
            "cosine": float(np.average(cosine_N, weights=times_I[pairs.identity_N])),
            **{metric_name(far): tar_at(*rates, far) for far in readable},
            "auc": area(*rates),
            "eer": equal_error_rate(*rates),
            "accuracy": balanced_accuracy(decisions_P, pairs.same_P, weights_P),
        }

    found = scores(np.ones(pairs.num_identities))
    order = ("cosine", *map(metric_name, FARS), "auc", "eer", "accuracy")
    draws = [scores(times_I) for times_I in identity_draws(pairs)]
    far, tar = curve.rates()
    return Verification(
        {name: found.get(name) for name in order},
        {name: np.array([draw[name] for draw in draws]) for name in found},
        tuple(tar_at(far, tar, limit) for limit in ROC_FARS),
    )


def identity_draws(pairs: Pairs) -> np.ndarray:
    """(R, I): how often each identity is drawn, in draws that leave pairs of both kinds within the blocks."""
    random = numpy_generator(0, 0, "verification bootstrap")
    size = pairs.num_identities
    inside = pairs.block_P >= 0
    kept: list[np.ndarray] = []
    while len(kept) < BOOTSTRAP_DRAWS:
        times_I = random.multinomial(size, np.full(size, 1 / size))
        present = inside & (pairs.weights(times_I) > 0)
        if (present & pairs.same_P).any() and (present & ~pairs.same_P).any():
            kept.append(times_I)
    return np.array(kept)
