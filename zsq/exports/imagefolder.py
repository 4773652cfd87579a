"""Export as class folders of PNG: `<class>/<number>.png`, without a label `unlabelled/<number>.png`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from zsq.core.errors import ExportError
from zsq.core.files import read_regular
from zsq.core.wording import quantity
from zsq.exports.export_json import ExportRecord, Layout, Range
from zsq.exports.kinds import Reader, Writer, files_in, listed_files, png_bytes, png_pixels, readable
from zsq.images.photos import MAX_FILE_BYTES, UNLABELLED


class ImageFolderWriter(Writer):
    """Class folders are named by the class index; the number is the image's in the run."""

    ranges: ClassVar[tuple[Range, ...]] = ("uint8",)
    default_layout: ClassVar[Layout] = "png"

    def add(self, pixels_NCHW: np.ndarray, labels_N: np.ndarray, first_image: int) -> None:
        """One file per image."""
        for number, (pixels, label) in enumerate(zip(pixels_NCHW, labels_N, strict=True), first_image):
            folder = self.folder / (UNLABELLED if label < 0 else str(label))
            folder.mkdir(exist_ok=True)
            path = folder / f"{number:08d}.png"
            path.write_bytes(png_bytes(pixels))
            self.sums.add(path)

    @staticmethod
    def use(record: ExportRecord) -> tuple[str, str, str]:
        """With torchvision, whose class numbers are ranks of names: `classes` gives the names."""
        return (
            "from torchvision.datasets import ImageFolder",
            "images = ImageFolder('.')",
            "names = images.classes  # a label is the rank of its folder's name; names[label] is the class",
        )


class ImageFolderReader(Reader):
    """Reads the images in the order of SHA256SUMS, which is that of the run."""

    def __init__(self, folder: Path, record: ExportRecord) -> None:
        """Open the list."""
        super().__init__(folder, record)
        self._names = listed_files(folder)

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Decode the next files."""
        pixels, labels = np.empty((count, *self.record.image.shape), np.uint8), np.empty(count, np.int64)
        for index in range(count):
            name = next(self._names, None)
            if name is None:
                raise ExportError(f"{self.folder} ends early", quantity(self.record.num_images, "image"))
            pixels[index], labels[index] = self._image(name)
        return pixels, labels

    def check_end(self) -> None:
        """No file is listed or lies there beyond the images."""
        extra = next(self._names, None)
        if extra is not None:
            raise ExportError(
                f"{self.folder} lists {extra}", f"{quantity(self.record.num_images, 'image')} only"
            )
        found = sum(1 for _ in files_in(self.folder))
        if found != self.record.num_images:
            raise ExportError(
                f"{self.folder} holds {quantity(found, 'file')}", quantity(self.record.num_images, "image")
            )

    def _image(self, name: str) -> tuple[np.ndarray, int]:
        path = self.folder / name
        label = Path(name).parent.name
        if label != UNLABELLED and not label.isdecimal():
            raise ExportError(f"{path} lies in no class folder", f"<class index>/ or {UNLABELLED}/")
        with readable(path):
            if path.is_symlink():
                raise ExportError(f"{path} is a link", "a small PNG file")
            data = read_regular(path, MAX_FILE_BYTES)
            return png_pixels(data, self.record), -1 if label == UNLABELLED else int(label)
