"""Photos with boxes in COCO's form, and with masks: folders and archives, fitted to the teacher."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from zsq.core.errors import ImagesError, MismatchError, ZsqError
from zsq.core.imagespec import ImageSpec
from zsq.core.photofit import PhotoFit
from zsq.images.class_names import ClassNames
from zsq.images.sources import load_images

SPEC = ImageSpec(channels=3, size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
STRETCH, CROP = PhotoFit(how="stretch"), PhotoFit(how="crop")
CATEGORIES = [{"id": 0, "name": "cat"}, {"id": 3, "name": "traffic light"}]


def png(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8), mode).save(buffer, "png")
    return buffer.getvalue()


def photo(height=8, width=8, seed=0):
    return png(np.random.default_rng(seed).integers(0, 256, (height, width, 3)))


def annotation(image_id, bbox, category_id=0, **more):
    return {"id": 7, "image_id": image_id, "category_id": category_id, "bbox": bbox, "area": 1.0} | more


def coco(names, annotations, **more):
    rows = [{"id": number, "file_name": name} for number, name in enumerate(names, 1)]
    return {"images": rows, "annotations": annotations, "categories": CATEGORIES} | more


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return root


def archive(path, files, root=""):
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(root + name, content if isinstance(content, bytes) else json.dumps(content))
    return path


TWO = {
    "images/b.png": photo(seed=1),
    "images/a.png": photo(seed=2),
    "annotations.json": coco(
        ["b.png", "a.png"],
        [annotation(2, [1, 2, 3, 4], 3), annotation(2, [0, 0, 8, 8], iscrowd=1, segmentation={"counts": []})],
    ),
}


@pytest.mark.parametrize("kind", ["folder", "zip", "zip with a folder inside"])
def test_boxes_come_with_their_photos_in_the_order_of_the_list(kind, tmp_path):
    if kind == "folder":
        source = write(tmp_path / "set", TWO)
    else:
        source = archive(tmp_path / "set.zip", TWO, "val/" if "inside" in kind else "")
    images = load_images(source, SPEC)
    empty, full = images.boxes
    assert empty["boxes"].shape == (0, 4) and empty["labels"].shape == (0,)
    assert full["boxes"].tolist() == [[1, 2, 4, 6], [0, 0, 8, 8]]
    assert full["labels"].tolist() == [3, 0] and full["iscrowd"].tolist() == [False, True]
    expected = np.asarray(Image.open(io.BytesIO(TWO["images/b.png"]))).transpose(2, 0, 1)
    assert np.array_equal(images.pixels[0].numpy(), expected)
    assert images.labels.tolist() == [-1, -1] and images.targets is None
    assert load_images(source, SPEC, limit=1).boxes[0]["labels"].tolist() == []
    assert images.subset([1]).boxes[0]["labels"].tolist() == [3, 0]


def test_file_names_may_start_at_the_root(tmp_path):
    files = TWO | {"annotations.json": coco(["images/a.png"], [annotation(1, [1, 1, 2, 2])])}
    images = load_images(write(tmp_path, files), SPEC)
    assert len(images) == 1 and len(images.boxes[0]["labels"]) == 1
    assert images.notes == ("1 photos are not in annotations.json and are left out",)


def one(bbox, height, width, **more):
    return {
        "images/a.png": photo(height, width),
        "annotations.json": coco(["a.png"], [annotation(1, bbox)], **more),
    }


def test_boxes_are_stretched_with_their_photo(tmp_path):
    images = load_images(write(tmp_path, one([4, 2, 8, 4], 16, 32)), SPEC, fit=STRETCH)
    assert images.boxes[0]["boxes"].tolist() == [[1, 1, 3, 3]]


def test_boxes_are_cropped_with_their_photo(tmp_path):
    # 16 x 32 px are scaled to 8 x 16, of which columns 4 to 12 stay.
    files = one([4, 2, 8, 4], 16, 32)
    files["annotations.json"]["annotations"] += [annotation(1, [0, 0, 8, 16]), annotation(1, [20, 2, 12, 8])]
    images = load_images(write(tmp_path, files), SPEC, fit=CROP)
    assert images.boxes[0]["boxes"].tolist() == [[0, 1, 2, 3], [6, 1, 8, 5]]


def test_a_painted_box_stays_where_its_box_is(tmp_path):
    picture = np.zeros((32, 64, 3))
    picture[8:24, 24:40] = 255
    files = one([24, 8, 16, 16], 32, 64) | {"images/a.png": png(picture)}
    for fit in (STRETCH, CROP):
        images = load_images(write(tmp_path, files), SPEC, fit=fit)
        x1, y1, x2, y2 = images.boxes[0]["boxes"][0].int().tolist()
        bright = torch.zeros(8, 8, dtype=torch.bool)
        bright[y1:y2, x1:x2] = True
        assert torch.equal(images.pixels[0, 0] > 127, bright), fit


def test_a_box_a_little_over_the_border_is_cut(tmp_path):
    images = load_images(write(tmp_path, one([-1.5, 0, 4, 9], 8, 8)), SPEC)
    assert images.boxes[0]["boxes"].tolist() == [[0, 0, 2.5, 8]]


def test_categories_are_found_by_name_where_the_teacher_lists_its_classes(tmp_path):
    names = ClassNames(5, {"traffic light": 0, "cat": 4}, stated=True)
    source = write(tmp_path, TWO)
    assert load_images(source, SPEC, class_names=names).boxes[1]["labels"].tolist() == [0, 4]
    assert load_images(source, SPEC, class_names=ClassNames(by_order=True)).boxes[1]["labels"].tolist() == [
        1,
        0,
    ]
    with pytest.raises(ImagesError, match=r"category 'cat'.*did you mean 'car'"):
        load_images(source, SPEC, class_names=ClassNames(2, {"traffic light": 0, "car": 1}, stated=True))
    with pytest.raises(ImagesError, match=r"category id 3 \('traffic light'\); expected 0 to 2.*classes"):
        load_images(source, SPEC, class_names=ClassNames(3))


NAN = b'{"images": [{"id": 1, "file_name": "a.png"}], "categories": [], "annotations": %s}'
DAMAGED = {
    "no JSON": (b"{", "JSON"),
    "another JSON": ([1], "COCO"),
    "no lists": ({"images": []}, "annotations"),
    "no images": (coco([], []), "no images"),
    "image id that does not exist": (coco(["a.png"], [annotation(2, [0, 0, 1, 1])]), "image_id 2"),
    "category that does not exist": (coco(["a.png"], [annotation(1, [0, 0, 1, 1], 9)]), "category_id 9"),
    "image id twice": (
        coco([], [], images=[{"id": 1, "file_name": name} for name in ("a.png", "b.png")]),
        "image id 1 twice",
    ),
    "file twice": (coco(["a.png", "a.png"], []), "'a.png' twice"),
    "no such photo": (coco(["c.png"], []), r"'c\.png'.*images/c\.png"),
    "path outside": (coco(["../a.png"], []), "path below"),
    "absolute path": (coco(["/etc/passwd"], []), "path below"),
    "no photo": (coco(["annotations.json"], []), r"images/annotations\.json"),
    "box outside": (coco(["a.png"], [annotation(1, [6, 6, 90, 1])]), r"inside of its 8x8 px"),
    "box beyond floats": (coco(["a.png"], [annotation(1, [1e308, 0, 1e308, 1])]), "inside"),
    "negative width": (coco(["a.png"], [annotation(1, [4, 4, -2, 2])]), "width"),
    "three numbers": (coco(["a.png"], [annotation(1, [4, 4, 2])]), "bbox"),
    "texts": (coco(["a.png"], [annotation(1, ["4", "4", "2", "2"])]), "bbox"),
    "NaN": (NAN % b'[{"image_id": 1, "category_id": 0, "bbox": [NaN, 0, 1, 1]}]', "finite number"),
    "infinity": (NAN % b'[{"image_id": 1, "category_id": 0, "bbox": [0, 0, 1e999, 1]}]', "finite number"),
    "long number": (NAN % (b'[{"image_id": ' + b"9" * 5000 + b"}]"), "out of range"),
    "deep": (NAN % (b"[" * 100_000), "recursion"),
    "other size": (
        coco([], [], images=[{"id": 1, "file_name": "a.png", "width": 640, "height": 480}]),
        r"a\.png is 8x8 px; expected 640x480",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_annotations_are_one_line(damage, zipped, tmp_path):
    content, word = DAMAGED[damage]
    files = {"images/a.png": photo(), "images/b.png": photo(), "annotations.json": content}
    source = archive(tmp_path / "set.zip", files) if zipped else write(tmp_path / "set", files)
    with pytest.raises(ZsqError, match=word) as caught:
        load_images(source, SPEC)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_huge_annotations_take_no_memory(tmp_path, monkeypatch):
    source = write(tmp_path / "set", {"images/a.png": photo()})
    with (source / "annotations.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ImagesError, match="larger than"):
        load_images(source, SPEC)
    monkeypatch.setattr("zsq.images.photos.available_bytes", lambda: 100)
    with pytest.raises(ImagesError, match="GiB"):
        load_images(write(tmp_path / "other", TWO), SPEC)


def test_a_pipe_for_annotations_is_one_line(tmp_path):
    import os

    source = write(tmp_path / "set", {"images/a.png": photo()})
    os.mkfifo(source / "annotations.json")
    with pytest.raises(ImagesError, match=r"annotations\.json cannot be read"):
        load_images(source, SPEC)


def test_there_is_no_photo_of_each_class(tmp_path):
    with pytest.raises(ImagesError, match="class folders"):
        load_images(write(tmp_path, TWO), SPEC, one_per_class=True)


def mask(height, width, mode="L"):
    values = np.zeros((height, width), np.uint8)
    values[: height // 2, : width // 2] = 7
    values[height // 2 :, width // 2 :] = 255
    image = Image.fromarray(values)
    if mode == "P":
        image = Image.fromarray(values, "P")
        image.putpalette(list(range(255, -1, -1)) * 3)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "png") if mode not in ("L", "P") else image.save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_stand_beside_their_photos(kind, mode, tmp_path):
    files = {
        "images/x/a.jpeg.png": photo(16, 32),
        "masks/x/a.jpeg.png": mask(16, 32, mode),
        "images/b.png": photo(8, 8),
        "masks/b.png": mask(8, 8, mode),
    }
    source = write(tmp_path / "set", files) if kind == "folder" else archive(tmp_path / "set.zip", files)
    images = load_images(source, SPEC, fit=STRETCH)
    expected = np.zeros((8, 8), np.uint8)
    expected[:4, :4], expected[4:, 4:] = 7, 255
    assert images.targets.dtype == torch.uint8 and images.boxes is None
    for found in images.targets:
        assert np.array_equal(found.numpy(), expected)


def test_a_mask_is_cropped_with_its_photo_to_the_nearest_pixel(tmp_path):
    values = np.random.default_rng(0).choice([0, 9, 255], (17, 31)).astype(np.uint8)
    files = {"images/a.png": png(np.stack([values] * 3, 2)), "masks/a.png": png(values)}
    images = load_images(write(tmp_path, files), SPEC, fit=PhotoFit(how="crop", interpolation="nearest"))
    assert torch.equal(images.targets, images.pixels[:, 0])
    assert set(images.targets.unique().tolist()) <= {0, 9, 255}


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("masks/c.png", mask(8, 8), r"a\.png has no mask; expected masks/a\.png"),
        ("masks/a.png", mask(8, 9), "9x8 px; expected 8x8"),
        ("masks/a.png", photo(), "mode RGB"),
        ("masks/a.png", b"PNG", "cannot be read"),
    ],
)
def test_masks_that_do_not_fit_are_one_line(name, content, word, tmp_path):
    with pytest.raises((ImagesError, MismatchError), match=word):
        load_images(write(tmp_path, {"images/a.png": photo(), name: content}), SPEC)


def test_a_folder_called_images_alone_is_a_class(tmp_path):
    images = load_images(write(tmp_path, {"images/a.png": photo(), "other/b.png": photo()}), SPEC)
    assert images.boxes is None and images.labels.tolist() == [0, 1]
