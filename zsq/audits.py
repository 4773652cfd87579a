"""What a synthetic set may reveal of its owner's images: is it nearer to those the network was trained on?

Images are compared in pixels and in the teacher's features. A control puts planted copies to the same test,
so that a silent audit is known to be one that could have spoken. Only figures and indices leave this module.

Suffixes: S synthetic images, T training images, H held-out images, N any, D dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from zsq.contract import Teacher
from zsq.errors import MismatchError
from zsq.evaluate import check_shapes
from zsq.intervals import Interval, percentile_interval
from zsq.runtime import Runtime
from zsq.seeding import numpy_generator
from zsq.verification import Curve, area, normalised

BATCH = 128
# A synthetic image is suspected where it is at most this part as far from its training neighbour as any other
# image of the owner. Measured in pixels on aligned faces: other people's images 0.8 and more, copies with
# noise of 4 levels 0.1 to 0.4.
COPY_RATIO = 0.5
SAME = 1e-3  # distances below are of equal images, in the arithmetic of squared differences
NUM_PLANTED = 5
ALTERATION = 4.0  # grey levels of noise on the second round of planted copies
DRAWS = 1000


@dataclass(frozen=True)
class Suspect:
    """A synthetic image and the training image that it may copy: indices, the space where it shows, their
    distance, and that as a part of the training image's distance to the nearest other image of the owner."""

    synthetic: int
    train: int
    space: str
    distance: float
    ratio: float


@dataclass(frozen=True)
class Space:
    """Figures of one space. Distances are (least, median, largest): of each synthetic image to the nearest
    training and held-out image, and as a yardstick of each held-out image to the nearest training image.

    `membership_auc`, 0..100: the chance that a training image is nearer to the synthetic set than a held-out
    one; 50 says nothing, and so does an interval that holds it.
    """

    synthetic_to_train: tuple[float, float, float]
    synthetic_to_holdout: tuple[float, float, float]
    holdout_to_train: tuple[float, float, float]
    membership_auc: float
    membership_ci95: Interval


@dataclass(frozen=True)
class Control:
    """How many of `planted` copies the audit named, exact ones and such with noise of `ALTERATION` levels."""

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
    spaces: Mapping[str, Space]
    suspects: Sequence[Suspect]
    control: Control

    @property
    def named(self) -> list[int]:
        """Synthetic images under suspicion in any space."""
        return sorted({suspect.synthetic for suspect in self.suspects})


def audit_images(
    teacher: Teacher, synthetic: Tensor, train: Tensor, holdout: Tensor, runtime: Runtime
) -> Audit:
    """Compare uint8 (N, C, H, W) images; the teacher is on the runtime's device.

    Raises:
        MismatchError: images of another shape than the teacher's, or fewer than 2 training or held-out ones.
    """
    for name, pixels in (("synthetic", synthetic), ("training", train), ("held-out", holdout)):
        check_shapes(pixels, teacher.spec, f"{name} images")
        if len(pixels) < 2:
            raise MismatchError(f"{len(pixels)} {name} image", "at least 2")
    embed = _Embedder(teacher, runtime)
    owners = [_Owners(*pair) for pair in zip(embed.spaces(train), embed.spaces(holdout), strict=True)]
    own = embed.spaces(synthetic)
    return Audit(
        len(synthetic),
        len(train),
        len(holdout),
        {space: owner.figures(rows) for space, owner, rows in zip(SPACES, owners, own, strict=True)},
        _suspects(owners, own),
        _control(owners, embed, train),
    )


SPACES = ("pixels", "features")


class _Embedder:
    """Rows of images in both spaces, from a private copy of the teacher's network."""

    def __init__(self, teacher: Teacher, runtime: Runtime) -> None:
        self.teacher, self.runtime = teacher, runtime
        self.network = copy.deepcopy(teacher.network)
        self._entering: list[Tensor] = []
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._entering[:] = args[:1]

    def spaces(self, pixels_NCHW: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Pixels scaled so that distances are root mean squares, and features, float64 (N, D) each."""
        levels = pixels_NCHW.flatten(1).numpy().astype(np.float64)
        with self.runtime.threads_set(), torch.inference_mode():
            parts = [self._features(part) for part in pixels_NCHW.split(BATCH)]
        return levels / np.sqrt(levels.shape[1]), normalised(torch.cat(parts).numpy())

    def _features(self, pixels_NCHW: Tensor) -> Tensor:
        """Embeddings; of a classifier what enters its last layer, mean over positions."""
        outputs = self.network(self.teacher.spec.pixels_to_norm(pixels_NCHW.to(self.runtime.device)))
        if self.teacher.task == "classify" and self._entering:
            outputs = self._entering[0]
        return (outputs.mean(dim=(2, 3)) if outputs.dim() == 4 else outputs.flatten(1)).float().cpu()


class _Owners:
    """The owner's images in one space."""

    def __init__(self, train_TD: np.ndarray, holdout_HD: np.ndarray) -> None:
        self.train_TD, self.holdout_HD = train_TD, holdout_HD
        self.train, self.holdout = _index(train_TD), _index(holdout_HD)

    def ratios(self, rows_SD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distance to the nearest training image, its index, and the ratio that makes suspects, (S,) each."""
        distance_S, index_S = _nearest(self.train, rows_SD)
        neighbours_SD = self.train_TD[index_S]
        others_S2 = self.train.kneighbors(neighbours_SD, 2)[0]  # the first is the image itself
        yardstick_S = np.minimum(others_S2[:, 1], _nearest(self.holdout, neighbours_SD)[0])
        # Of an image that the owner has twice, only an exact copy is told.
        twice_S = yardstick_S < SAME
        ratio_S = distance_S / np.where(twice_S, SAME, yardstick_S)
        return distance_S, index_S, ratio_S

    def figures(self, rows_SD: np.ndarray) -> Space:
        """All of a synthetic set."""
        synthetic = _index(rows_SD)
        train_T, holdout_H = (_nearest(synthetic, rows)[0] for rows in (self.train_TD, self.holdout_HD))
        return Space(
            _spread(_nearest(self.train, rows_SD)[0]),
            _spread(_nearest(self.holdout, rows_SD)[0]),
            _spread(_nearest(self.train, self.holdout_HD)[0]),
            *membership(train_T, holdout_H),
        )


def membership(train_T: np.ndarray, holdout_H: np.ndarray) -> tuple[float, Interval]:
    """AUC, 0..100, of telling training from held-out images by their distance to the synthetic set, and its
    95 % bootstrap interval over images."""
    is_train = np.arange(len(train_T) + len(holdout_H)) < len(train_T)
    curve = Curve(-np.concatenate([train_T, holdout_H]), is_train)
    random = numpy_generator(0, 0, "audit bootstrap")
    draws = []
    for _ in range(DRAWS):
        times = [random.multinomial(n, np.full(n, 1 / n)) for n in (len(train_T), len(holdout_H))]
        draws.append(100 * area(*curve.rates(np.concatenate(times))))
    interval = percentile_interval(np.array(draws))
    assert interval is not None
    return 100 * area(*curve.rates()), interval


def _suspects(owners: Sequence[_Owners], spaces: Sequence[np.ndarray]) -> list[Suspect]:
    found = []
    for space, owner, rows in zip(SPACES, owners, spaces, strict=True):
        distance_S, index_S, ratio_S = owner.ratios(rows)
        for s in np.flatnonzero(ratio_S <= COPY_RATIO).tolist():
            found.append(Suspect(s, int(index_S[s]), space, float(distance_S[s]), float(ratio_S[s])))
    return found


def _control(owners: Sequence[_Owners], embed: _Embedder, train: Tensor) -> Control:
    """Put copies of training images to the test, as they are and with noise; each image is judged alone."""
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
    lines = [
        f"control: of {control.planted} planted copies {control.named_exact} named, with noise "
        f"{control.named_altered}",
        f"{len(audit.named)} of {audit.num_synthetic} synthetic images are suspects"
        + (f": {', '.join(map(str, audit.named))}" if audit.named else ""),
    ]
    for space, figures in audit.spaces.items():
        low, high = figures.membership_ci95
        lines.append(
            f"{space}: nearest training image at {figures.synthetic_to_train[1]:.3g} (median), held-out at "
            f"{figures.synthetic_to_holdout[1]:.3g}; membership AUC {figures.membership_auc:.1f} "
            f"[{low:.1f}, {high:.1f}]"
        )
    return lines


def audit_json(audit: Audit) -> dict[str, Any]:
    """The audit as JSON holds it."""
    return {**asdict(audit), "named": audit.named, "copy_ratio": COPY_RATIO, "alteration": ALTERATION}
