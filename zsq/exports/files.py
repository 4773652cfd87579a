"""Export as one file per image and a list of them, as tools take them that are not written in Python."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from zsq.core.errors import ExportError
from zsq.core.files import read_regular
from zsq.core.wording import quantity
from zsq.exports.export_json import SUMS_NAME, Each, ExportRecord
from zsq.exports.kinds import Reader, Writer, files_in, listed_files, png_bytes, png_pixels, readable
from zsq.images.photos import MAX_FILE_BYTES

FOLDER, LIST_NAME, LABELS_NAME = "images", "list.txt", "labels.txt"
ENDINGS: dict[Each, str] = {"png": ".png", "npy": ".npy", "raw": ".raw"}


class FilesWriter(Writer):
    """`images/<number>.png`, `.npy` or `.raw`; `list.txt` names them and `labels.txt` has a label for each, a
    line per image. A file in npy has the batch axis, of length 1; one in raw is values in C order alone."""

    def __init__(self, folder: Path, record: ExportRecord) -> None:
        """Make the folder of the images."""
        super().__init__(folder, record)
        (folder / FOLDER).mkdir()
        self._lists = [(folder / name).open("w", newline="\n") for name in (LIST_NAME, LABELS_NAME)]

    def add(self, pixels_NCHW: np.ndarray, labels_N: np.ndarray, first_image: int) -> None:
        """One file per image."""
        assert self.record.each is not None
        for number, (pixels, label) in enumerate(zip(pixels_NCHW, labels_N, strict=True), first_image):
            name = f"{FOLDER}/{number:08d}{ENDINGS[self.record.each]}"
            (self.folder / name).write_bytes(self._content(pixels))
            self.sums.add(self.folder / name)
            for file, text in zip(self._lists, (name, str(label)), strict=True):
                file.write(f"{text}\n")

    def _content(self, pixels_CHW: np.ndarray) -> bytes:
        if self.record.each == "png":
            return png_bytes(pixels_CHW)
        values = self.record.encode(pixels_CHW[None])
        if self.record.each == "raw":
            return values.tobytes()
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, values, (1, 0), allow_pickle=False)
        return buffer.getvalue()

    def close(self) -> str:
        """Finish the lists."""
        for file, name in zip(self._lists, (LIST_NAME, LABELS_NAME), strict=True):
            file.close()
            self.sums.add(self.folder / name)
        return super().close()

    @staticmethod
    def use(record: ExportRecord) -> tuple[str, str, str]:
        """With numpy, or with pillow."""
        paths = f"paths = open('{LIST_NAME}').read().split()"
        if record.each == "png":
            return ("from PIL import Image", paths, "images = [Image.open(path) for path in paths]")
        if record.each == "npy":
            return (
                "import numpy as np",
                paths,
                "images = [np.load(path, allow_pickle=False) for path in paths]",
            )
        shape, dtype = record.image_shape, record.stored_dtype.str
        one = f"np.fromfile(path, '{dtype}').reshape({shape})"
        return ("import numpy as np", paths, f"images = [{one} for path in paths]")


class FilesReader(Reader):
    """Reads the images in the order of SHA256SUMS, which is that of the run and of the list."""

    def __init__(self, folder: Path, record: ExportRecord) -> None:
        """Open the lists."""
        super().__init__(folder, record)
        self._names = listed_files(folder)
        most = 64 * record.num_images
        with readable(folder):
            paths, labels = (
                read_regular(folder / name, most).decode("ascii").split() for name in (LIST_NAME, LABELS_NAME)
            )
            self._paths, self._labels = iter(paths), iter([int(label) for label in labels])

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Decode the next files."""
        pixels, labels = np.empty((count, *self.record.image.shape), np.uint8), np.empty(count, np.int64)
        for index in range(count):
            name, listed, label = next(self._names, None), next(self._paths, None), next(self._labels, None)
            if name is None or listed != name or label is None:
                raise ExportError(f"{self.folder}/{LIST_NAME} names '{listed}'", f"'{name}' of {SUMS_NAME}")
            pixels[index], labels[index] = self._image(name), label
        return pixels, labels

    def check_end(self) -> None:
        """Nothing but the two lists is listed, and nothing else lies there."""
        rest = list(self._names)
        if rest != [LIST_NAME, LABELS_NAME] or next(self._paths, None) is not None:
            raise ExportError(
                f"{self.folder} lists {rest[:3]}", f"{quantity(self.record.num_images, 'image')} only"
            )
        found = sum(name not in (LIST_NAME, LABELS_NAME) for name in files_in(self.folder))
        if found != self.record.num_images:
            raise ExportError(
                f"{self.folder} holds {quantity(found, 'file')}", quantity(self.record.num_images, "image")
            )

    def _image(self, name: str) -> np.ndarray:
        path = self.folder / name
        with readable(path):
            if path.is_symlink():
                raise ExportError(f"{path} is a link", "a file")
            data = read_regular(path, MAX_FILE_BYTES)
            if self.record.each == "png":
                return png_pixels(data, self.record)
            return self.record.decode(self._values(data, path))[0]

    def _values(self, data: bytes, path: Path) -> np.ndarray:
        shape, dtype = (1, *self.record.image_shape), self.record.stored_dtype
        if self.record.each == "npy":
            file = io.BytesIO(data)
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0(file) if version == (1, 0) else None
            if header != (shape, False, dtype):
                raise ExportError(f"{path}: an array of {header}", f"{shape} {dtype}")
            data = file.read()
        if len(data) != dtype.itemsize * int(np.prod(shape)):
            raise ExportError(f"{path} holds {len(data)} bytes", f"values of {shape} {dtype}")
        return np.frombuffer(data, dtype).reshape(shape)
