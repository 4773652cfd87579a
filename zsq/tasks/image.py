"""An image per image: super-resolution, denoising."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zsq.core.errors import ImagesError, MismatchError
from zsq.core.wording import quantity
from zsq.tasks.base import Meter, Metric, Scores, Task, Truth, draw_weights, targets_of

# Of 8-bit images; equal ones have no error at all.
LARGEST_PSNR = 100.0
# ITU-R BT.601, of R, G and B 0..255: luma 16..235, rounded as papers do that convert 8-bit images.
LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
LUMA_OFFSET = 16.0


@dataclass(frozen=True)
class Image(Task):
    """(N, C, H, W) images; `targets` are the images that should come out, uint8.

    Attributes:
        psnr_on: measure luma (`y`, of three channels) or all channels alike.
        border: pixels cut off at each edge before anything is measured.
        output_range: the output's values of black and white.
    """

    name: ClassVar[str] = "image"
    wants: ClassVar[str] = "(N, C, H, W) images"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "psnr": Metric("PSNR", "dB", most=LARGEST_PSNR),
        "psnr_teacher": Metric("PSNR against the teacher", "dB", most=LARGEST_PSNR, of_teacher=True),
        "ssim": Metric("SSIM", least=-100.0),
    }
    quality: ClassVar[str | None] = "psnr"
    trains: ClassVar[bool] = True
    takes_signals: ClassVar[bool] = False
    has_replicates: ClassVar[bool] = True

    psnr_on: Literal["y", "rgb"] = "rgb"
    border: int = 0
    output_range: tuple[float, float] = (0.0, 1.0)

    def suits(self, outputs: Tensor) -> bool:
        """One batch of images."""
        return isinstance(outputs, Tensor) and outputs.dim() == 4

    def meter(self) -> Meter:
        """PSNR and SSIM against the targets where there are some, and PSNR against the teacher's images."""
        return _Fidelity(self)

    def has_truth(self, images: Truth) -> bool:
        """There are target images."""
        targets = images.targets
        return targets is not None and targets.dim() == 4 and targets.dtype == torch.uint8

    def check_truth(self, images: Truth, num_outputs: int | None) -> None:
        """There are target images, of the output's channels."""
        if images.targets is None or not self.has_truth(images):
            expected = "an .npz with 'targets', uint8 (N, H, W, C)"
            raise ImagesError("evaluation images without the images that should come out", expected)
        channels = images.targets.shape[1]
        if num_outputs is not None and channels != num_outputs:
            raise MismatchError(
                f"targets of {quantity(channels, 'channel')}", f"{num_outputs}, as the network makes"
            )

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean absolute error, as super-resolution networks are trained."""
        return F.l1_loss(student.float(), teacher.float())

    def measured(self, images_NCHW: Tensor) -> Tensor:
        """What is compared: 8-bit values 0..255 in float64, cut and as luma where `psnr_on` says so."""
        height, width = images_NCHW.shape[2:]
        cut = images_NCHW[..., self.border : height - self.border, self.border : width - self.border].double()
        if self.psnr_on == "rgb":
            return cut
        return ((cut * cut.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True) + LUMA_OFFSET).round()

    def to_levels(self, outputs_NCHW: Tensor) -> Tensor:
        """Outputs as the levels of an 8-bit image, 0..255."""
        low, high = self.output_range
        return ((outputs_NCHW.double() - low) / (high - low) * 255).round().clamp(0, 255)


def psnr(first_NCHW: Tensor, second_NCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair of images with values 0..255, (N,)."""
    error_N = (first_NCHW - second_NCHW).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / error_N)).clamp(max=LARGEST_PSNR)


def ssim(first_NCHW: Tensor, second_NCHW: Tensor) -> Tensor:
    """Structural similarity of each pair of images with values 0..255, (N,) at most 1.

    Wang et al. 2004: Gaussian window of 11 px and sigma 1.5, where it lies inside, mean over channels.
    """
    from kornia.metrics import ssim as ssim_map

    return ssim_map(first_NCHW, second_NCHW, 11, max_val=255.0, padding="valid").flatten(1).mean(1)


class _Fidelity(Meter):
    def __init__(self, task: Image) -> None:
        super().__init__()
        self.task = task
        self.values: dict[str, list[Tensor]] = {}

    def _add(self, student: Tensor, teacher: Tensor, truth: Truth | None, rows: slice) -> None:
        task = self.task
        own, other = (task.measured(task.to_levels(part)) for part in (student, teacher))
        found = {"psnr_teacher": psnr(own, other)}
        if truth is not None and truth.targets is not None:
            target = targets_of(truth.targets[rows], student)
            wanted = task.measured(target)
            found = {"psnr": psnr(own, wanted), "ssim": 100 * ssim(own, wanted)} | found
        for name, values_N in found.items():
            self.values.setdefault(name, []).append(values_N)

    def _scores(self) -> Scores:
        """Means over images, and over those of every bootstrap draw."""
        values = {name: torch.cat(parts).numpy() for name, parts in self.values.items()}
        count = len(next(iter(values.values())))
        shares_RN = draw_weights(count) / count
        return Scores(
            {name: float(values_N.mean()) for name, values_N in values.items()},
            {name: (shares_RN @ values_N).round(4).tolist() for name, values_N in values.items()},
        )
