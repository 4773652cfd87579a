"""What transformers' preprocessing does to a photo, as an ImageSpec and a PhotoFit.

It is measured on plain photos and on ramps rather than read: each kind of network has its own fields for it.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import ValidationError

from zsq.core.errors import UsageError
from zsq.core.imagespec import ImageSpec
from zsq.core.photofit import Interpolation, PhotoFit
from zsq.core.records import first_fault
from zsq.teacher.hf_config import CONFIG_FILE, PREPROCESSOR_FILE, read_config, said

# Of PIL's numbers; the others are smooth, as bicubic is.
_INTERPOLATION: dict[int, Interpolation] = {0: "nearest", 2: "bilinear"}
# (height, width) of the photos; no side exceeds 256, so that a ramp of one level a pixel fits.
_WIDE, _HIGH = (192, 256), (256, 192)
_DIGITS = 6  # that single precision keeps
_SAME_VALUE, _SAME_SIDE = 1e-4, 0.5
# Of what a stranger's file may ask for: no photo becomes larger than LARGEST_SIDE / LEAST_CROP pixels.
_LARGEST_SIDE, _LEAST_CROP = 2048, 0.25

# A photo (H, W, 3), uint8 -> what the network takes of it (C, H, W).
Preprocessing = Callable[[np.ndarray], np.ndarray]


def image_spec_and_fit(transformers: Any, folder: Path, config: Any, name: str) -> tuple[ImageSpec, PhotoFit]:
    """What the model in `folder` says of its images. Where it says nothing, the defaults of its kind hold,
    and a warning says so.

    Raises:
        UsageError: preprocessing that cannot be read, makes images of no fixed size, or does more to values
            than to scale and to shift each channel.
    """
    described = _described(folder, config, name)
    try:
        processor = _processor(transformers, config.model_type, described)
        grey = getattr(config, "num_channels", 3) == 1

        def preprocess(photo: np.ndarray) -> np.ndarray:
            image = Image.fromarray(photo).convert("L" if grey else "RGB")
            return processor(images=image, return_tensors="pt")["pixel_values"][0].double().numpy()

        mean, std, order, size = _values(preprocess)
        interpolation = _INTERPOLATION.get(int(processor.resample), "bicubic")
        fit = _photo_fit(preprocess, size, interpolation)
        return ImageSpec(channels=len(mean), size=size, mean=mean, std=std, channel_order=order), fit
    except _UnusableError as error:
        raise UsageError(f"{name}: its preprocessing {error}", "", "use a teacher card") from None
    except ValidationError as error:
        raise UsageError(f"{name}: its preprocessing has {first_fault(error)}") from None
    # Values of a stranger's file in code that checks few of them.
    except Exception as error:
        raise UsageError(f"{name}: its preprocessing fails ({said(error)})") from None


class _UnusableError(Exception):
    """Preprocessing that no ImageSpec can say."""


def _described(folder: Path, config: Any, name: str) -> dict[str, Any]:
    """The content of the folder's file; where there is none, the size of the network's configuration."""
    path = folder / PREPROCESSOR_FILE
    if path.is_file():
        return _checked(read_config(path, name), name)
    size = getattr(config, "image_size", None)
    given = f"{size} px, " if isinstance(size, int) else "size, "
    found = f"{name} has no {PREPROCESSOR_FILE}: {given}mean and std are {config.model_type}'s usual ones"
    warnings.warn(found, stacklevel=2)
    return _checked({"size": {"height": size, "width": size}} if isinstance(size, int) else {}, name)


def _checked(described: dict[str, Any], name: str) -> dict[str, Any]:
    """The same, if no photo would become too large for memory."""
    sides = [described.get(key) for key in ("size", "crop_size", "pad_size")]
    numbers = [number for side in sides for number in (side.values() if isinstance(side, dict) else [side])]
    if any(isinstance(number, int | float) and number > _LARGEST_SIDE for number in numbers):
        raise UsageError(
            f"{name}: {PREPROCESSOR_FILE} has sizes over {_LARGEST_SIDE} px", "", "use a teacher card"
        )
    crop = described.get("crop_pct")
    if isinstance(crop, int | float) and crop < _LEAST_CROP:
        raise UsageError(f"{name}: {PREPROCESSOR_FILE} has crop_pct {crop}", f"{_LEAST_CROP} or more")
    return described


def _processor(transformers: Any, model_type: str, described: dict[str, Any]) -> Any:
    """transformers' own class for it, made of nothing else that is in the model's folder."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / CONFIG_FILE).write_text(json.dumps({"model_type": model_type}))
        (folder / PREPROCESSOR_FILE).write_text(json.dumps(described))
        return transformers.AutoImageProcessor.from_pretrained(
            text, trust_remote_code=False, local_files_only=True
        )


def _values(
    preprocess: Preprocessing,
) -> tuple[tuple[float, ...], tuple[float, ...], Literal["rgb", "bgr"], tuple[int, int]]:
    """Mean and std per channel, red first; the order of channels; and (height, width)."""
    black, white, red = (
        preprocess(np.full((*_WIDE, 3), colour, np.uint8)) for colour in (0, 255, (255, 0, 0))
    )
    high = preprocess(np.zeros((*_HIGH, 3), np.uint8))
    if black.ndim != 3 or black.shape != high.shape:
        raise _UnusableError("makes images of no fixed size")
    if max(np.ptp(plain, axis=(1, 2)).max() for plain in (black, white)) > _SAME_VALUE:
        raise _UnusableError("pads photos")
    span = (white - black).mean(axis=(1, 2))
    if not (span > 0).all():
        raise _UnusableError("does not keep the order of values")
    std = 1 / span
    mean = -black.mean(axis=(1, 2)) * std
    is_bgr = len(red) == 3 and abs(red[0] - black[0]).max() < _SAME_VALUE < abs(red[2] - black[2]).max()
    if is_bgr:
        mean, std = mean[::-1], std[::-1]
    return _rounded(mean), _rounded(std), "bgr" if is_bgr else "rgb", black.shape[1:]


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") + 0.0 for value in values)


def _photo_fit(preprocess: Preprocessing, size: tuple[int, int], interpolation: Interpolation) -> PhotoFit:
    """From the sizes that a wide and a high photo are scaled to: the centre is cut out of what is larger."""
    black, white = (preprocess(np.full((*_WIDE, 3), value, np.uint8)).mean() for value in (0, 255))
    scaled = [_scaled(preprocess, photo, (white - black) / 255) for photo in (_WIDE, _HIGH)]
    if all(
        abs(found - side) < _SAME_SIDE for photo in scaled for found, side in zip(photo, size, strict=True)
    ):
        return PhotoFit(how="stretch", interpolation=interpolation)
    return PhotoFit(resize=max(round(min(scaled[0])), min(size)), interpolation=interpolation)


def _scaled(preprocess: Preprocessing, photo: tuple[int, int], level: float) -> list[float]:
    """(height, width) that a photo of the size `photo` is scaled to, from the slopes of ramps; `level` is
    what one level of a pixel becomes."""
    sides = []
    for axis in (0, 1):
        ramp = np.arange(photo[axis], dtype=np.uint8)
        plane = np.broadcast_to(ramp[:, None] if axis == 0 else ramp, photo)
        values = preprocess(np.stack([plane] * 3, axis=2)).mean(axis=0).mean(axis=1 - axis)
        margin = len(values) // 8
        places = np.arange(len(values))[margin:-margin]
        slope = np.polyfit(places, values[margin:-margin] / level, 1)[0]
        sides.append(photo[axis] / slope)
    return sides
