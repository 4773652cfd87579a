"""Figures of whole sets, against numpy over all pairs."""

import itertools
import math

import numpy as np
import torch
from toys import make_teacher, without_bn

from zsq.core.runtime import Runtime
from zsq.measure.setfacts import bn_distances, intra_class_distances


def pixels(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *make_teacher().spec.shape), generator=generator, dtype=torch.uint8)


def test_intra_class_distance_is_the_mean_over_pairs_then_classes():
    teacher, features = make_teacher(), []
    last = [m for m in teacher.network.modules() if isinstance(m, torch.nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    images = torch.cat([pixels(20), pixels(12, 1) // 3, pixels(12, 2) // 9])
    with torch.no_grad():
        classes = teacher.logits(teacher.spec.pixels_to_standard(images)).argmax(1).numpy()
    handle.remove()
    rows = features[0].double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    means = []
    for label in np.unique(classes):
        pairs = list(itertools.combinations(np.flatnonzero(classes == label), 2))
        if pairs:
            means.append(np.mean([1 - rows[a] @ rows[b] for a, b in pairs]))
    assert len(means) > 1
    found = intra_class_distances(teacher, {"set": images}, Runtime())
    assert math.isclose(found["set"], np.mean(means), abs_tol=1e-5)


def test_copies_have_no_variety_and_single_images_no_figure():
    arms = {"copies": pixels(1).repeat(9, 1, 1, 1), "single": pixels(1)}
    found = intra_class_distances(make_teacher(), arms, Runtime())
    assert abs(found["copies"]) < 1e-5 and math.isnan(found["single"])


def test_nothing_to_say_without_bn_or_classes():
    arms = {"set": pixels(4)}
    assert intra_class_distances(make_teacher(task="embed"), arms, Runtime()) == {}
    assert bn_distances(make_teacher(without_bn), arms, Runtime()) == ([], {})


def test_variety_inside_classes_needs_no_bn():
    arms = {"copies": pixels(1).repeat(9, 1, 1, 1)}
    assert abs(intra_class_distances(make_teacher(without_bn), arms, Runtime())["copies"]) < 1e-5


def test_bn_distance_is_of_the_whole_set():
    """Chunks of 128 images must not show: means and variances are over all images."""
    teacher, inputs = make_teacher(), {}
    images = pixels(150)
    layers = {m: n for n, m in teacher.network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    handles = [m.register_forward_pre_hook(lambda m, x: inputs.update({layers[m]: x[0]})) for m in layers]
    with torch.no_grad():
        teacher.logits(teacher.spec.pixels_to_standard(images))
    for handle in handles:
        handle.remove()
    names, found = bn_distances(teacher, {"set": images}, Runtime())
    for name, value in zip(names, found["set"], strict=True):
        layer, x = teacher.network.get_submodule(name), inputs[name].double().numpy()
        gap = x.mean((0, 2, 3)) - layer.running_mean.double().numpy()
        spread = x.std((0, 2, 3)) - layer.running_var.double().sqrt().numpy()
        assert math.isclose(value, (gap**2 + spread**2).mean(), rel_tol=1e-3)
