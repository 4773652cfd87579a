"""What the names of metrics mean: their words, their unit, and how far they reach."""

from __future__ import annotations

from zsq.tasks.image import LARGEST_PSNR
from zsq.tasks.sqnr import LARGEST_DB

WORDS = {
    "cosine": "cosine to the teacher",
    "psnr": "PSNR",
    "psnr_teacher": "PSNR against the teacher",
    "ssim": "SSIM",
    "miou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "agreement_ap": "AP against the teacher",
    "agreement_ap25": "AP against more of the teacher's boxes",
    "map": "mAP",
    "sqnr": "signal-to-noise ratio",
    "sqnr_centred": "signal-to-noise ratio without the mean over images",
}


def words(metric: str) -> str:
    """How texts call a metric."""
    return WORDS.get(metric, metric.replace("_", " "))


def against_teacher(metric: str) -> bool:
    """Whether it compares a student with its teacher, and needs no labels."""
    return metric.startswith(("agreement", "cosine", "psnr_teacher", "sqnr"))


def unit(metric: str) -> str:
    """`dB` of ratios, else `points`."""
    return "dB" if metric.partition(".")[0] in ("psnr", "psnr_teacher", "sqnr", "sqnr_centred") else "points"


def with_unit(metric: str, value: float) -> str:
    """`91.52 %` or `28.46 dB`."""
    return f"{value:.2f} {'dB' if unit(metric) == 'dB' else '%'}"


def metric_range(metric: str) -> tuple[float, float]:
    """The least and the largest value that a metric can have, in its unit."""
    if metric.startswith("sqnr"):
        return (-LARGEST_DB, LARGEST_DB)
    if metric.startswith("psnr"):
        return (0.0, LARGEST_PSNR)
    return (-100.0, 100.0) if metric in ("cosine", "ssim") else (0.0, 100.0)
