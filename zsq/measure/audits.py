"""What a synthetic set may reveal of the images that the network was trained on.

Synthetic images are compared with training images and with held-out images of the same owner, in pixels and
in the teacher's features. As a control, copies of training images are planted and judged by the same rule: an
audit that misses them proves nothing by finding nothing. Only figures and indices leave this module.

Suffixes: S synthetic images, T training images, H held-out images, N any, D dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from zsq.contract import Teacher
from zsq.core.errors import MismatchError
from zsq.core.runtime import Runtime
from zsq.core.seeding import numpy_generator
from zsq.engine.executed import FeatureTap
from zsq.measure.confidence import Interval, percentile_interval
from zsq.tasks.base import Truth
from zsq.tasks.embed import Embed
from zsq.tasks.verification import Curve, area, normalised

BATCH = 128
# The ratio of an image: its distance to the nearest training image, divided by the distance of that training
# image to the owner's nearest other image. A suspect's ratio is at most half of the 1 % quantile of held-out
# images.
COPY_RATIO = 0.5
NULL_QUANTILE = 0.01
SAME = 1e-3  # distances below are of equal images, in the arithmetic of squared differences
NUM_PLANTED = 5
ALTERATION = 4.0  # grey levels of noise on the second round of planted copies
DRAWS = 1000
SPACES = ("pixels", "features")


@dataclass(frozen=True)
class Suspect:
    """A synthetic image that may copy a training image.

    Attributes:
        synthetic, train: indices of the two images.
        space: `pixels` or `features`, where they are near.
        distance: between the two.
        ratio: the distance, divided by that from the training image to the owner's nearest other image.
    """

    synthetic: int
    train: int
    space: str
    distance: float
    ratio: float


@dataclass(frozen=True)
class Space:
    """Figures of one space. Distances are (least, median, largest).

    Attributes:
        synthetic_to_train, synthetic_to_holdout: of each synthetic image to the nearest image of the owner.
        holdout_to_train: of each held-out image to the nearest training image, to compare with.
        largest_ratio: above it, an image is no suspect.
        membership_auc: 0..100, the chance that a training image is nearer to the synthetic set than a
            held-out one. 50 is chance.
        membership_ci95: its interval, from a bootstrap over images, or over identities where they are known,
            since images of one person are alike. One that contains 50 shows nothing.
    """

    synthetic_to_train: tuple[float, float, float]
    synthetic_to_holdout: tuple[float, float, float]
    holdout_to_train: tuple[float, float, float]
    largest_ratio: float
    membership_auc: float
    membership_ci95: Interval


@dataclass(frozen=True)
class Control:
    """How many of `planted` copies the audit found: exact ones, and with `ALTERATION` levels of noise."""

    planted: int
    named_exact: int
    named_altered: int


@dataclass(frozen=True)
class Audit:
    """All figures. Spaces are `pixels`, with the root mean square difference in levels of 0..255, and
    `features`, with the distance of rows of length 1."""

    num_synthetic: int
    num_train: int
    num_holdout: int
    resampled: Literal["images", "identities"]
    spaces: Mapping[str, Space]
    suspects: Sequence[Suspect]
    control: Control

    @property
    def named(self) -> list[int]:
        """Indices of synthetic images that are suspects in any space."""
        return sorted({suspect.synthetic for suspect in self.suspects})


def identities_of(teacher: Teacher, train: Truth, holdout: Truth) -> tuple[Tensor, Tensor] | None:
    """int64 (N,) of the images of an embedding teacher; None where they are not known of all."""
    known = isinstance(teacher.task, Embed) and all(bool((s.labels >= 0).all()) for s in (train, holdout))
    return (train.labels, holdout.labels) if known else None


def audit_images(
    teacher: Teacher,
    synthetic: Tensor,
    train: Tensor,
    holdout: Tensor,
    runtime: Runtime,
    identities: tuple[Tensor, Tensor] | None = None,
) -> Audit:
    """What `Auditor` says of one set; the same arguments and errors."""
    return Auditor(teacher, train, holdout, runtime, identities).audit(synthetic)


class Auditor:
    """The owner's images, and the teacher that was trained on some of them, to judge any number of sets."""

    def __init__(
        self,
        teacher: Teacher,
        train: Tensor,
        holdout: Tensor,
        runtime: Runtime,
        identities: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Take uint8 (N, C, H, W) images; the teacher is on the runtime's device.

        Args:
            identities: int64 (N,) of the training and of the held-out images, where known; else each image is
                taken for an identity of its own.

        Raises:
            MismatchError: images of another shape than the teacher's, or fewer than 2 of them.
        """
        self.teacher, self.train, self.holdout = teacher, train, holdout
        for name, pixels in (("training", train), ("held-out", holdout)):
            self._check(name, pixels)
        self.embed = _Embedder(teacher, runtime)
        pairs = zip(self.embed.spaces(train), self.embed.spaces(holdout), strict=True)
        self.owners = [_Owners(*pair) for pair in pairs]
        labels = identities or (torch.arange(len(train)), torch.arange(len(holdout)))
        self.numbered = tuple(np.unique(each.numpy(), return_inverse=True)[1] for each in labels)
        self.resampled: Literal["images", "identities"] = "identities" if identities else "images"

    @cached_property
    def control(self) -> Control:
        """Whether copies of training images are found."""
        return _control(self.owners, self.embed, self.train)

    def audit(self, synthetic: Tensor) -> Audit:
        """Compare a set of uint8 (N, C, H, W) images.

        Raises:
            MismatchError: images of another shape than the teacher's, or fewer than 2 of them.
        """
        self._check("synthetic", synthetic)
        own = self.embed.spaces(synthetic)
        spaces = {
            space: owner.figures(rows, *self.numbered)
            for space, owner, rows in zip(SPACES, self.owners, own, strict=True)
        }
        sizes = (len(synthetic), len(self.train), len(self.holdout))
        return Audit(*sizes, self.resampled, spaces, _suspects(self.owners, own), self.control)

    def _check(self, name: str, pixels: Tensor) -> None:
        self.teacher.spec.check_pixels(pixels, f"{name} images")
        if len(pixels) < 2:
            raise MismatchError(f"{len(pixels)} {name} image", "at least 2")


def planted(synthetic: Tensor, train: Tensor, number: int) -> Tensor:
    """The set with training images in place of its first `number` images: what a leak looks like.

    Raises:
        MismatchError: more than there are of either.
    """
    most = min(len(synthetic), len(train))
    if number > most:
        raise MismatchError(f"{number} planted copies", f"at most {most}, the size of the set")
    chosen = numpy_generator(0, 0, "audit planted").permutation(len(train))[:number]
    return torch.cat([train[torch.from_numpy(chosen)], synthetic[number:]])


class _Embedder:
    """Rows of images in both spaces, from a private copy of the teacher's network."""

    def __init__(self, teacher: Teacher, runtime: Runtime) -> None:
        self.teacher, self.runtime = teacher, runtime
        self.network = copy.deepcopy(teacher.network)
        self.tap = None if isinstance(teacher.task, Embed) else FeatureTap(self.network, teacher)

    def spaces(self, pixels_NCHW: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Pixels scaled so that distances are root mean squares, and features, float64 (N, D) each."""
        levels = pixels_NCHW.flatten(1).numpy().astype(np.float64)
        with self.runtime.in_force(exact=True), torch.inference_mode():
            parts = [self._features(part) for part in pixels_NCHW.split(BATCH)]
        return levels / np.sqrt(levels.shape[1]), normalised(torch.cat(parts).numpy())

    def _features(self, pixels_NCHW: Tensor) -> Tensor:
        """Embeddings; of any other network what enters its last layer."""
        outputs = self.network(self.teacher.spec.pixels_to_norm(pixels_NCHW.to(self.runtime.device)))
        return (outputs if self.tap is None else self.tap.take()).flatten(1).float().cpu()


class _Owners:
    """The owner's images in one space."""

    def __init__(self, train_TD: np.ndarray, holdout_HD: np.ndarray) -> None:
        self.train_TD, self.holdout_HD = train_TD, holdout_HD
        self.train, self.holdout = _index(train_TD), _index(holdout_HD)

    def ratios(
        self, rows_ND: np.ndarray, held_out: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distance to the nearest training image, its index, and the ratio, (N,) each.

        Args:
            held_out: the rows are the held-out images; none is compared with itself.
        """
        distance_N, index_N = _nearest(self.train, rows_ND)
        neighbours_ND = self.train_TD[index_N]
        others_N2 = self.train.kneighbors(neighbours_ND, 2)[0]  # the first is the image itself
        holdout_N2, holdout_index_N2 = self.holdout.kneighbors(neighbours_ND, 2)
        is_itself_N = held_out & (holdout_index_N2[:, 0] == np.arange(len(rows_ND)))
        yardstick_N = np.minimum(others_N2[:, 1], np.where(is_itself_N, holdout_N2[:, 1], holdout_N2[:, 0]))
        return distance_N, index_N, distance_N / np.maximum(yardstick_N, SAME)

    @cached_property
    def threshold(self) -> float:
        """Largest ratio of a suspect."""
        null = np.quantile(self.ratios(self.holdout_HD, held_out=True)[2], NULL_QUANTILE)
        return COPY_RATIO * min(1.0, float(null))

    def figures(self, rows_SD: np.ndarray, identity_T: np.ndarray, identity_H: np.ndarray) -> Space:
        """All of a synthetic set."""
        synthetic = _index(rows_SD)
        train_T, holdout_H = (_nearest(synthetic, rows)[0] for rows in (self.train_TD, self.holdout_HD))
        return Space(
            _spread(_nearest(self.train, rows_SD)[0]),
            _spread(_nearest(self.holdout, rows_SD)[0]),
            _spread(_nearest(self.train, self.holdout_HD)[0]),
            self.threshold,
            *membership(train_T, holdout_H, identity_T, identity_H),
        )


def membership(
    train_T: np.ndarray, holdout_H: np.ndarray, identity_T: np.ndarray, identity_H: np.ndarray
) -> tuple[float, Interval]:
    """AUC, 0..100, of telling training from held-out images by their distance to the synthetic set, and its
    95 % bootstrap interval over identities, which count from 0 on each side."""
    is_train = np.arange(len(train_T) + len(holdout_H)) < len(train_T)
    curve = Curve(-np.concatenate([train_T, holdout_H]), is_train)
    random = numpy_generator(0, 0, "audit bootstrap")
    draws = []
    for _ in range(DRAWS):
        times = [_times(identities, random) for identities in (identity_T, identity_H)]
        draws.append(100 * area(*curve.rates(np.concatenate(times))))
    interval = percentile_interval(np.array(draws))
    assert interval is not None
    return 100 * area(*curve.rates()), interval


def _times(identity_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(N,): how often each image is there when as many identities as there are are drawn with repeats."""
    size = int(identity_N.max()) + 1
    return random.multinomial(size, np.full(size, 1 / size))[identity_N]


def _suspects(owners: Sequence[_Owners], spaces: Sequence[np.ndarray]) -> list[Suspect]:
    found = []
    for space, owner, rows in zip(SPACES, owners, spaces, strict=True):
        distance_S, index_S, ratio_S = owner.ratios(rows)
        for s in np.flatnonzero((ratio_S <= owner.threshold) | (distance_S < SAME)).tolist():
            found.append(Suspect(s, int(index_S[s]), space, float(distance_S[s]), float(ratio_S[s])))
    return found


def _control(owners: Sequence[_Owners], embed: _Embedder, train: Tensor) -> Control:
    """Judge copies of training images, first exact ones, then ones with noise."""
    random = numpy_generator(0, 0, "audit control")
    planted = train[torch.from_numpy(random.permutation(len(train))[:NUM_PLANTED])]
    noise = torch.from_numpy(random.normal(0, ALTERATION, planted.shape))
    named = []
    for copies in (planted, (planted + noise).round().clamp(0, 255).to(torch.uint8)):
        suspects = _suspects(owners, embed.spaces(copies))
        named.append(len({suspect.synthetic for suspect in suspects}))
    return Control(len(planted), *named)


def _index(rows_ND: np.ndarray) -> NearestNeighbors:
    return NearestNeighbors(n_neighbors=1, algorithm="brute").fit(rows_ND)


def _nearest(index: NearestNeighbors, rows_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to and index of the nearest indexed row, (N,) each."""
    distance, nearest = index.kneighbors(rows_ND)
    return distance[:, 0], nearest[:, 0]


def _spread(distances_N: np.ndarray) -> tuple[float, float, float]:
    return float(distances_N.min()), float(np.median(distances_N)), float(distances_N.max())


def audit_lines(audit: Audit) -> list[str]:
    """The audit in sentences."""
    control = audit.control
    named = f": {', '.join(map(str, audit.named))}" if audit.named else ""
    lines = [
        f"test of the audit: it found {control.named_exact} of {control.planted} copies of training images, "
        f"and {control.named_altered} of {control.planted} with noise added",
        f"{len(audit.named)} of {audit.num_synthetic} synthetic images may be copies of a training image"
        + named,
    ]
    for space, figures in audit.spaces.items():
        low, high = figures.membership_ci95
        lines.append(
            f"in {space}, a synthetic image is {figures.synthetic_to_train[1]:.3g} from the nearest training "
            f"image and {figures.synthetic_to_holdout[1]:.3g} from the nearest held-out one (medians); "
            f"membership AUC {figures.membership_auc:.1f} [{low:.1f}, {high:.1f}] over {audit.resampled}, "
            "50 is chance"
        )
    return lines


def audit_json(audit: Audit) -> dict[str, Any]:
    """The audit as JSON holds it."""
    return {**asdict(audit), "named": audit.named, "alteration": ALTERATION}
