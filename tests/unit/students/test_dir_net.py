"""DIR-Net: features follow the teacher's, and without its additions it is `binary`."""

import pytest
import torch
from tiny_students import outputs
from toys import Downsample, as_detector, shared_teacher, structured_images

import zsq
from zsq.core.runtime import Runtime
from zsq.quantizers.signs import BinaryWeight
from zsq.saved.cost import student_cost
from zsq.students import create
from zsq.students.binary import Binary
from zsq.students.dir_net import DIRNet, feature_distance
from zsq.widths import Bits


@pytest.fixture(scope="module")
def teacher():
    return shared_teacher(Downsample)


@pytest.fixture(scope="module")
def pixels(teacher):
    return teacher.spec.standard_to_pixels(structured_images((12, *teacher.spec.shape)))


class Renamed(DIRNet):
    """With the random streams of `binary`."""

    name = "binary"


def fit(kind, teacher, pixels, bits="W1A4", **options):
    options = {"iterations": 4, "batch": 6} | options
    return kind(kind.options_class(**options), Runtime()).fit(teacher, pixels, Bits.parse(bits))


def test_features_of_another_size_are_equal_and_opposite_ones_far():
    features = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    assert feature_distance(features, 5 * features) < 1e-10
    torch.testing.assert_close(feature_distance(features, -features), torch.tensor(4.0))
    assert feature_distance(torch.zeros(2, 3), torch.ones(2, 3)).isfinite()


def test_without_its_additions_it_is_binary(teacher, pixels):
    sharp = {"first_sharpness": 9.0, "last_sharpness": 30.0}
    none = {"rule": "scale", "retained": 0.0, "representation_weight": 0.0}
    expected = outputs(fit(Binary, teacher, pixels, **sharp), pixels)
    assert torch.equal(outputs(fit(Renamed, teacher, pixels, **sharp, **none), pixels), expected)
    for addition in none:
        only = sharp | {key: value for key, value in none.items() if key != addition}
        assert not torch.equal(outputs(fit(Renamed, teacher, pixels, **only), pixels), expected), addition


def test_the_distance_of_features_falls(teacher, pixels, monkeypatch):
    seen = []

    def noted(student, teacher):
        distance = feature_distance(student, teacher)
        seen.append(distance.item())
        return distance

    monkeypatch.setattr("zsq.students.dir_net.feature_distance", noted)
    options = {"iterations": 30, "batch": 12, "shift": 0, "flip": False, "representation_weight": 30.0}
    fit(DIRNet, teacher, pixels, **options)
    # One block; the last layer's output is no feature.
    assert len(seen) == 30 and seen[-1] < 0.7 * seen[0]


def test_saved_loaded_and_counted(teacher, pixels, tmp_path):
    fitted = fit(DIRNet, teacher, pixels, "W1A1", first_last=8)
    assert not any(isinstance(module, BinaryWeight) for module in fitted.network.modules())
    zsq.save_student(fitted, teacher, tmp_path)
    loaded = zsq.load_student(tmp_path)
    assert torch.equal(outputs(loaded, pixels), outputs(fitted, pixels))
    widths = {(layer.weight_bits, layer.activation_bits) for layer in student_cost(loaded).layers}
    assert widths == {(8, 8), (1, 1)}


def test_detectors_are_followed_too(teacher, pixels):
    student = create("dir-net", teacher.spec, {"iterations": 2, "batch": 6}, Runtime())
    assert student.fit(as_detector(teacher), pixels, Bits(1, 4)).tensors
