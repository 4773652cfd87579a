"""Floats in the units of a teacher's `range` as pixels: signals and other measured values."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zsq.core.errors import ImagesError
from zsq.core.imagespec import ImageSpec

AT_ONCE = 256  # images that become pixels together

# A wrong range puts most values outside of it; outliers of measured signals are few.
MOST_CLAMPED = 0.5


def pixels_of_values(path: Path, values: Tensor, spec: ImageSpec) -> Tensor:
    """uint8 of floats, those outside of the range clamped.

    Raises:
        ImagesError: NaN or infinity, or most values outside of the range.
    """
    low, high = spec.range or (0.0, 1.0)
    if not bool(values.isfinite().all()):
        raise ImagesError(f"{path} holds NaN or infinity", "finite values")
    outside = sum(int(((part < low) | (part > high)).sum()) for part in values.split(AT_ONCE))
    if outside > MOST_CLAMPED * values.numel():
        found = f"{outside / values.numel():.0%} of the values of {path} are outside of {low:g}..{high:g}"
        raise ImagesError(found, "values in the range of the teacher's card")
    return torch.cat([spec.values_to_pixels(part) for part in values.split(AT_ONCE)])
