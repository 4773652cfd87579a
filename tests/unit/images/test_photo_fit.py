"""Photos of any size for a teacher, against torchvision's own transforms."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

import zsq
from zsq.config import ImagesConfig
from zsq.contract import Teacher
from zsq.core.errors import MismatchError
from zsq.core.imagespec import ImageSpec
from zsq.core.photofit import PhotoFit
from zsq.core.progress import Reporter
from zsq.images.imageset import said
from zsq.images.sources import images_for, load_images

SIZES = [(50, 37), (37, 50), (90, 24), (24, 25), (12, 15), (24, 24)]  # (W, H)


def teacher(fit, size=(24, 24)):
    spec = ImageSpec(size=size, mean=(0.5,) * 3, std=(0.25,) * 3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], 10))
    return Teacher("toy", network, spec, 10, "0" * 64, photo_fit=fit)


@pytest.fixture
def photos(tmp_path):
    """A flat folder of photos of several sizes; the last has the teacher's."""
    for index, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


def as_tensor(image):
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


@pytest.mark.parametrize(("resize", "interpolation"), [(None, "bilinear"), (28, "bilinear"), (27, "bicubic")])
def test_crop_is_what_torchvisions_transforms_do(resize, interpolation, photos):
    fit = PhotoFit(resize=resize, interpolation=interpolation)
    found = images_for(teacher(fit), photos).pixels
    for index in range(5):
        scaled = F.resize(
            Image.open(photos / f"{index}.png"), [resize or 24], InterpolationMode(interpolation)
        )
        assert torch.equal(found[index], as_tensor(F.center_crop(scaled, [24]))), SIZES[index]


def test_a_photo_of_the_teachers_size_is_taken_as_it_is(photos):
    found = images_for(teacher(PhotoFit(resize=28)), photos).pixels[5]
    assert torch.equal(found, as_tensor(Image.open(photos / "5.png")))


def test_stretch_scales_both_sides(photos):
    found = images_for(teacher(PhotoFit(how="stretch"), (20, 30)), photos).pixels
    for index, pixels in enumerate(found):
        scaled = Image.open(photos / f"{index}.png").resize((30, 20), Image.Resampling.BILINEAR)
        assert torch.equal(pixels, as_tensor(scaled))


@pytest.mark.parametrize("size", [(20, 30), (30, 20)])
@pytest.mark.parametrize("photo", [(37, 50), (50, 37), (7, 90), (90, 7), (20, 30), (1, 1)])
def test_what_is_scaled_covers_the_image_and_keeps_proportions(photo, size):
    for resize in (None, 23):
        height, width = PhotoFit(resize=resize).scaled(photo, size)
        assert height >= size[0] and width >= size[1]
        assert abs(height * photo[1] - width * photo[0]) <= 2 * max(photo)


def test_it_is_said_once_and_kept(photos):
    found = images_for(teacher(PhotoFit(resize=28)), photos)
    assert found.photo_fit == "5 of 6 photos fitted to 24x24 px: short side to 28 px, then the centre"
    assert said(found, found) == [f"{photos}: {found.photo_fit}"]
    assert found.subset([0]).photo_fit == found.photo_fit


def test_the_users_word_wins(photos):
    own = teacher(PhotoFit(resize=28))
    with pytest.raises(MismatchError, match=r"50x37 px.*24x24 as the teacher takes.*--fit crop"):
        images_for(own, photos, ImagesConfig(fit="refuse"))
    stretched = images_for(own, photos, ImagesConfig(fit="stretch"))
    assert stretched.photo_fit.endswith("both sides scaled, which changes proportions")
    crop = images_for(own, photos, ImagesConfig(fit="crop"))
    assert torch.equal(crop.pixels, images_for(own, photos).pixels)


def test_without_a_teacher_nothing_is_scaled(photos):
    with pytest.raises(MismatchError, match="as the first image"):
        load_images(photos)
    with pytest.raises(MismatchError, match="as the teacher takes"):
        load_images(photos, teacher(PhotoFit()).spec)


def test_a_student_is_fitted_and_scored_on_photos_of_any_size(tmp_path, capsys):
    """Digits of double width, in class folders that are named by words: the file says which they are."""
    digits = load_images("embedded:digits:test")
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for index, (pixels, label) in enumerate(zip(digits.pixels, digits.labels.tolist(), strict=True)):
        folder = tmp_path / "val" / words[label]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels[0].numpy()).resize((64, 32), Image.Resampling.BILINEAR)
        image.save(folder / f"{index}.png")
    (tmp_path / "names.txt").write_text("\n".join(words))
    val, out = str(tmp_path / "val"), tmp_path / "student"
    result = zsq.quantize(
        "embedded:digits",
        val,
        "ptq",
        "W8A8",
        eval=val,
        fit="stretch",
        class_names=tmp_path / "names.txt",
        out=out,
        reporter=Reporter(),
    )
    assert result.teacher_score > 95
    assert "both sides scaled" in result.fitted.made.photo_fit
    assert capsys.readouterr().err.count("470 of 470 photos fitted to 32x32 px") == 1
    assert zsq.load_student(out).made.photo_fit == result.fitted.made.photo_fit
    assert any("470 of 470 photos fitted" in line for line in zsq.inspect(out))
    with pytest.raises(MismatchError, match="64x32"):
        zsq.quantize("embedded:digits", val, "ptq", "W8A8", fit="refuse")
