"""How a photo of another size becomes one of a teacher's images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from zsq.core.records import Record

Fit = Literal["refuse", "crop", "stretch"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
MAX_SIDE = 16384  # pixels
PositiveInt = Annotated[int, Field(gt=0, le=MAX_SIDE)]


class PhotoFit(Record):
    """What is done to a photo of another size.

    Attributes:
        how: `crop` scales the photo and takes its centre; `stretch` scales each side by a factor of its own;
            `refuse` takes no photo of another size.
        resize: of `crop`, the shorter side before the centre is taken; None: what the centre itself needs.
    """

    how: Fit = "crop"
    resize: PositiveInt | None = None
    interpolation: Interpolation = "bilinear"

    def scaled(self, photo: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that a photo of (height, width) is scaled to, at least `size`; for a square as
        torchvision's Resize does it."""
        if self.how == "stretch":
            return size
        margin = (self.resize or min(size)) / min(size)
        height, width = (max(round(side * margin), side) for side in size)
        if photo[0] * width <= photo[1] * height:
            return height, max(int(height * photo[1] / photo[0]), size[1])
        return max(int(width * photo[0] / photo[1]), size[0]), width

    def placed(
        self, photo: tuple[int, int], size: tuple[int, int]
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """What `scaled` says, and the rows and columns that are then cut off at the top and at the left."""
        height, width = self.scaled(photo, size)
        return (height, width), (round((height - size[0]) / 2), round((width - size[1]) / 2))

    def __str__(self) -> str:
        """In words."""
        if self.how == "stretch":
            return "both sides scaled, which changes proportions"
        return (
            f"short side to {self.resize} px, then the centre" if self.resize else "scaled, then the centre"
        )


OWN_SIZE = PhotoFit()
