"""Full precision on real images: what the data's own README states, for every network there."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from zsq.contract import Teacher
from zsq.images.sources import load_images
from zsq.teacher import load_teacher

pytestmark = pytest.mark.data

# Larger batches of 224-px images spend most of their time in page faults.
BATCH_PIXELS = 2**17


def accuracy(teacher: Teacher, source: Path, limit: int | None = None) -> float:
    images = load_images(source, teacher.spec, limit)
    height, width = teacher.spec.input_size or teacher.spec.size
    batch = max(4, BATCH_PIXELS // (height * width))
    batches = zip(images.pixels.split(batch), images.labels.split(batch), strict=True)
    with torch.no_grad():
        hits = [
            (teacher.network(teacher.spec.pixels_to_norm(pixels)).argmax(1) == labels).sum()
            for pixels, labels in batches
        ]
    return 100 * float(sum(hits)) / len(images)


@pytest.mark.parametrize(
    ("name", "weights", "source", "stated"),
    [
        ("cifar10:resnet20", "cifar10_jpeg/resnet20.pt", "cifar10_jpeg/test5000.zip", 88.16),
        ("cifar10:resnet20", "cifar10_jpeg/resnet20.pt", "cifar10/test1000.npz", 90.1),
        ("cifar10:resnet20", "cifar10/resnet20-12fca82f.th", "cifar10/test1000.npz", 91.5),
        ("file:${ZSQ_DATA}/cifar10_jpeg/repvgg.toml", None, "cifar10_jpeg/test5000.zip", 79.08),
        ("file:${ZSQ_DATA}/cifar10/resnet8.toml", None, "cifar10/test1000.npz", 88.1),
    ],
)
def test_classifier_measures_what_is_stated(data_folder, name, weights, source, stated):
    teacher = load_teacher(name, data_folder / weights if weights else None)
    assert accuracy(teacher, data_folder / source) == pytest.approx(stated, abs=0.2)


def test_etinynet_on_every_tenth_image(data_folder):
    """All 5000 give 53.8, as stated; of these 500, one image is 0.2."""
    teacher = load_teacher("file:${ZSQ_DATA}/tiny_imagenet/etiny_tin.toml")
    assert teacher.num_classes == 200
    found = accuracy(teacher, data_folder / "tiny_imagenet" / "val5000.zip", limit=500)
    assert found == pytest.approx(54.4, abs=0.4)


def test_mobilefacenet_tells_faces_apart(data_folder):
    teacher = load_teacher("file:${ZSQ_DATA}/face/mobilefacenet.toml")
    faces = load_images(data_folder / "face" / "orl30_aligned112.npz", teacher.spec, limit=60)
    with torch.no_grad():
        embeddings = teacher.network(teacher.spec.pixels_to_norm(faces.pixels))
    assert embeddings.shape == (60, 128) and teacher.num_classes is None
    cosine = F.cosine_similarity(embeddings[:, None], embeddings[None], dim=-1)
    same = faces.labels[:, None] == faces.labels[None]
    different = cosine[~same].mean()
    assert cosine[same & ~torch.eye(60, dtype=torch.bool)].mean() > different + 0.3
