"""What every student does with its images first: check them, and see what each tensor looks like on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zsq.contract import Teacher
from zsq.errors import MismatchError
from zsq.imagespec import ImageSpec
from zsq.quantizers.observers import Histogram, Observer
from zsq.quantizers.placement import Placement, Site

BATCH = 64


def check_images(teacher: Teacher, pixels_NCHW: Tensor) -> None:
    """Refuse what the teacher does not take.

    Raises:
        MismatchError: no image, another shape than the teacher's, or not uint8.
    """
    expected = f"(N, {', '.join(map(str, teacher.spec.shape))}) uint8 for teacher {teacher.name}"
    found = f"images of shape {tuple(pixels_NCHW.shape)} {str(pixels_NCHW.dtype).removeprefix('torch.')}"
    if tuple(pixels_NCHW.shape[1:]) != teacher.spec.shape or pixels_NCHW.dtype != torch.uint8:
        raise MismatchError(found, expected)
    if len(pixels_NCHW) == 0:
        raise MismatchError("no images to fit a student on", "at least one")


@torch.no_grad()
def observe(
    placement: Placement, spec: ImageSpec, pixels_NCHW: Tensor, device: str, batch: int = BATCH
) -> dict[Site, Histogram]:
    """Histogram of each activation site's tensor, with everything still float; the sites are left empty.

    In fp32 whatever the runtime's precision: ranges are statistics.
    """
    observers = {site: Observer(site.name) for site in placement.of_kind("activation")}
    if not observers:
        return {}
    for site, observer in observers.items():
        placement.put(site, observer)
    for pixels in pixels_NCHW.split(batch):
        images = spec.pixels_to_norm(pixels.to(device))
        placement.network(images.contiguous(memory_format=torch.channels_last))
    for site in observers:
        placement.put(site, nn.Identity())
    return {site: observer.histogram() for site, observer in observers.items()}
