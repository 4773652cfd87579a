"""PD-Quant: the prediction behind a unit, and features that batch norms expect."""

import pytest
import torch
from tiny_students import outputs
from toys import Dense, Downsample, shared_teacher, structured_images

from zsq.contract import Fit
from zsq.core.errors import MismatchError
from zsq.core.runtime import Runtime
from zsq.fitting.distribution import Correction
from zsq.fitting.dropping import DroppingOptions
from zsq.fitting.losses import distillation
from zsq.graph import capture
from zsq.placement.sites import place
from zsq.placement.subgraphs import beyond, up_to
from zsq.placement.units import partition
from zsq.students.pd_quant import PDQuant, PDQuantOptions
from zsq.students.qdrop import QDrop
from zsq.tasks.other import Other
from zsq.widths import Bits

BITS = Bits(3, 4)


def images_of(teacher, count):
    return teacher.spec.standard_to_pixels(structured_images((count, *teacher.spec.shape)))


def units_of(teacher):
    placement = place(teacher.network, teacher.example(), BITS, fold=True)
    return placement.network, partition(placement, "block", teacher.example()[:1])


@pytest.fixture(scope="module")
def corrected():
    """The first unit of a network with a shortcut, its correction and its input."""
    teacher = shared_teacher(Downsample)
    network, units = units_of(teacher)
    unfolded = capture(teacher.network, teacher.example())
    correction = Correction.of(unfolded, network, units[0])
    return correction, teacher.spec.pixels_to_norm(images_of(teacher, 6))


def test_a_correction_reads_every_norm_of_its_unit(corrected):
    correction, features = corrected
    assert len(correction.norms) == 3
    assert [entering.shape[1] for entering in correction.read(features)] == [8, 8, 8]


def test_correction_lowers_its_loss_and_a_heavy_distance_keeps_the_features(corrected):
    correction, features = corrected
    moved = correction.corrected(features, 40, 50.0)
    assert correction.loss(moved, features, 50.0) < correction.loss(features, features, 50.0)
    held = correction.corrected(features, 150, 1e9)
    far = correction.corrected(features, 150, 0.0)
    assert (held - features).abs().mean() < 0.1 * (far - features).abs().mean()


def test_the_loss_is_that_of_the_formula(corrected):
    correction, features = corrected
    moved = features + 0.1
    wanted = 0.0
    for norm, entering in zip(correction.norms, correction.read(moved), strict=True):
        for image in entering.flatten(2):
            wanted += (image.mean(1) - norm.running_mean).square().sum()
            deviation = (image.var(1) + 1e-6).sqrt() - (norm.running_var + 1e-6).sqrt()
            wanted += deviation.square().sum()
    # 3 channels, each 0.1 away.
    wanted = wanted / len(features) + 50 * 3 * 0.01
    assert torch.allclose(correction.loss(moved, features, 50.0), wanted, rtol=1e-4)


def test_one_position_has_no_deviation():
    norm = torch.nn.BatchNorm1d(4).eval()
    correction = Correction(lambda x: (x,), (norm,))
    assert correction.loss(torch.randn(1, 4, 1, 1), torch.zeros(1, 4, 1, 1), 1.0).isfinite()
    assert correction.corrected(torch.randn(3, 4), 2, 1.0).isfinite().all()


@pytest.mark.parametrize("build", [Dense, Downsample])
def test_a_unit_and_what_is_beyond_it_are_the_network(build):
    teacher = shared_teacher(build)
    network, units = units_of(teacher)
    norm = teacher.spec.pixels_to_norm(images_of(teacher, 3))
    for unit in units:
        (value,) = up_to(network, [unit.output])(norm)
        tail = beyond(network, unit.output)
        assert torch.allclose(tail(norm, value), teacher.network(norm), atol=1e-5)
        assert not torch.allclose(tail(norm, value + 1), teacher.network(norm), atol=1e-3)


class Watched(PDQuant):
    """Keeps what its units are reconstructed from."""

    def prepared(self, state, unit, data):
        prepared = super().prepared(state, unit, data)
        self.seen.append((data, prepared, [p.clone() for p in prepared.beyond.tail.parameters()]))
        return prepared


def test_all_images_are_corrected_and_the_tail_stays():
    teacher = shared_teacher(Downsample)
    student = Watched(PDQuantOptions(iterations=3, batch=8, correction_iterations=3), Runtime())
    student.seen = []
    pixels = images_of(teacher, 40)
    student.fit(teacher, pixels, BITS)
    data, prepared, before = student.seen[0]
    every = torch.arange(40)
    difference = (prepared.full.rows(every) - data.full.rows(every)).abs().flatten(1)
    assert (difference.amax(dim=1) > 0).all()
    assert prepared.quantized is data.full
    images, reference = prepared.beyond.rows(every)
    assert torch.allclose(reference, teacher.network(images), atol=1e-5)
    for parameter, old in zip(prepared.beyond.tail.parameters(), before, strict=True):
        assert torch.equal(parameter, old) and parameter.grad is None


class Renamed(PDQuant):
    """With the random streams of QDrop."""

    name = "qdrop"


def test_without_prediction_and_correction_it_is_qdrop():
    teacher = shared_teacher(Downsample)
    pixels, bits = images_of(teacher, 20), Bits(3, 32)
    shared = {"iterations": 4, "batch": 8, "learning_rate": 3e-3}
    own = PDQuantOptions(prediction_weight=0, correction_iterations=0, **shared)
    first = Renamed(own, Runtime()).fit(teacher, pixels, bits)
    second = QDrop(DroppingOptions(**shared), Runtime()).fit(teacher, pixels, bits)
    assert torch.equal(outputs(first, pixels), outputs(second, pixels))
    third = Renamed(own.model_copy(update={"prediction_weight": 10.0}), Runtime())
    assert not torch.equal(outputs(third.fit(teacher, pixels, bits), pixels), outputs(second, pixels))


def test_the_prediction_has_no_temperature_squared():
    student = PDQuant(PDQuantOptions(), Runtime())
    one, other = torch.randn(2, 5, 10)
    assert torch.allclose(student._prediction(one, other) * 16, distillation(one, other, 4.0))
    assert student._prediction(one, one).abs() < 1e-6


def test_a_task_without_a_loss_is_refused(digits, images):
    other = Fit(digits.__class__(**(vars(digits) | {"task": Other()})), images[:8], BITS, None, 0, None)
    with pytest.raises(MismatchError, match="prediction_weight=0"):
        PDQuant(PDQuantOptions(), Runtime()).check(other)
    PDQuant(PDQuantOptions(prediction_weight=0), Runtime()).check(other)
