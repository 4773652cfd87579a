"""A fitted student says where it is, and takes tensors from anywhere."""

import pytest
import torch
from tiny_students import fit, images_of, smallest_teacher

from zsq.students import STUDENTS


@pytest.mark.parametrize("name", STUDENTS)
def test_its_methods_take_tensors_of_any_device(name):
    teacher = smallest_teacher(name)
    images = images_of(teacher)
    fitted = fit(name, teacher, images)
    standard = teacher.spec.pixels_to_standard(images[:2])
    assert fitted.device == torch.device("cpu") and fitted.logits(standard).device == fitted.device
    # The meta device stands for another one: tensors of both in one operation are an error.
    fitted.network.to("meta")
    assert fitted.device == torch.device("meta")
    assert fitted.logits(standard).device == fitted.device


@pytest.mark.gpu
@pytest.mark.parametrize("name", STUDENTS)
def test_on_a_gpu(digits, images, name):
    fitted = fit(name, digits, images[:8])
    fitted.network.to("cuda")
    assert fitted.device.type == "cuda"
    assert fitted.logits(digits.spec.pixels_to_standard(images[:2])).isfinite().all()
