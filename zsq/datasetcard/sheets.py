"""Contact sheets: the first images of a set in one picture, as PNG."""

from __future__ import annotations

import base64
import io

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MAX_IMAGES = 32
PER_ROW = 8
# Edge of one image on the sheet: small images are enlarged by whole factors to at least the first, large
# ones reduced to at most the second, so that a sheet stays within some hundred kilobytes.
MIN_EDGE, MAX_EDGE = 64, 128
# Width and grey level of the lines between images.
LINE, GREY = 2, 128


def contact_sheet(pixels_NCHW: Tensor) -> Tensor:
    """The first images in rows of 8, uint8 (3, H, W); other than 1 or 3 channels show the first alone.
    Signals (N, C, L) are drawn as curves."""
    images = pixels_NCHW[:MAX_IMAGES]
    if images.dim() == 3:
        images = curves(images[:, 0])
    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    edge = max(images.shape[2:])
    if edge > MAX_EDGE:
        size = [max(1, round(extent * MAX_EDGE / edge)) for extent in images.shape[2:]]
        reduced = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        images = reduced.round().clamp(0, 255).to(torch.uint8)
    elif edge < MIN_EDGE:
        factor = -(-MIN_EDGE // edge)
        images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return _grid(images.expand(-1, 3, -1, -1))


def _grid(images_N3HW: Tensor) -> Tensor:
    """A single image has no lines around it."""
    if len(images_N3HW) == 1:
        return images_N3HW[0]
    height, width = (edge + LINE for edge in images_N3HW.shape[2:])
    columns = min(PER_ROW, len(images_N3HW))
    rows = -(-len(images_N3HW) // columns)
    grid = images_N3HW.new_full((3, rows * height + LINE, columns * width + LINE), GREY)
    for index, image in enumerate(images_N3HW):
        top, left = index // columns * height + LINE, index % columns * width + LINE
        grid[:, top : top + height - LINE, left : left + width - LINE] = image
    return grid


def curves(signals_NL: Tensor) -> Tensor:
    """uint8 signals -> uint8 pictures (N, 1, 64, at most 128): black from the lowest to the highest value of
    each column, 0 at the bottom."""
    length = signals_NL.shape[1]
    values = signals_NL.float()[:, None]
    width = min(length, MAX_EDGE)
    highest = F.adaptive_max_pool1d(values, width)
    lowest = -F.adaptive_max_pool1d(-values, width)
    levels = torch.linspace(255, 0, MIN_EDGE)[None, None, :, None]
    half = 255 / (MIN_EDGE - 1) / 2
    inside = (levels >= lowest[:, :, None] - half) & (levels <= highest[:, :, None] + half)
    return torch.where(inside, 0, 255).to(torch.uint8)


def sheet_png(sheet_CHW: Tensor) -> bytes:
    """uint8 (3, H, W) -> the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(sheet_CHW.permute(1, 2, 0).numpy()).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def png_data_uri(sheet_CHW: Tensor) -> str:
    """uint8 (3, H, W) -> `data:image/png;base64,...`."""
    return "data:image/png;base64," + base64.b64encode(sheet_png(sheet_CHW)).decode()
