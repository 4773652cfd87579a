"""DSG's generator network: GDFQ's training with a slack and with inhibition."""

import numpy as np
import pytest
import torch
from toys import NETWORKS, make_teacher

from zsq.core.seeding import torch_generator
from zsq.engine.amortise import FreshInputs
from zsq.engine.objectives import TeacherPass, gram_eigenvalues
from zsq.engine.parameterise import gaussian
from zsq.engine.statistics import Alignment
from zsq.generators import create


@pytest.fixture(scope="module")
def method():
    method = create("dsg_generative", make_teacher(NETWORKS["downsample"]), {"epsilon": 0.3}, 10, batch=6)
    method.seed = 4
    return method


def test_the_objective_against_numpy(method):
    inversion = method.training(FreshInputs(method.network, "cpu", method.options))
    gaussians = gaussian((6, *method.teacher.spec.shape), torch_generator(4, 0, "dsg slack"))
    images = torch.rand(6, *method.teacher.spec.shape, generator=torch.Generator().manual_seed(0))
    (logits, layers), (_, noise) = (inversion.tapped(each) for each in (images, gaussians))
    targets = torch.eye(5)[[0, 1, 2, 3, 4, 0]]
    forward = TeacherPass(images, logits, layers, targets)
    found = {term.name: (term.weight, term.function(forward).item()) for term in inversion.terms}
    plain, bn = Alignment("batch", unbiased=True), []
    for seen, expected in zip(layers, noise, strict=True):
        for values, gap in zip(plain.gaps(seen), plain.gaps(expected), strict=True):
            slack = np.percentile(np.abs(gap.numpy()), 30)
            bn.append(np.square(np.maximum(np.abs(values.numpy()) - slack, 0)).mean())
    drawn = gaussian((6, *method.teacher.spec.shape), torch_generator(4, 6, "dsg inhibition"))
    spectra = [gram_eigenvalues(each).numpy() for each in (images, drawn)]
    assert found["bn"] == (0.1, pytest.approx(2 * np.mean(bn), rel=1e-3)) and np.mean(bn) > 0
    inhibition = np.square(spectra[0] - spectra[1]).mean()
    assert found["inhibition"] == (pytest.approx(1e-4 / len(layers)), pytest.approx(inhibition, rel=1e-3))
    assert found["ce"][0] == 1.0 and set(found) == {"ce", "bn", "inhibition"}


def test_published_constants(method):
    assert (method.options.inhibition, method.options_class().epsilon) == (1e-4, 0.9)
    assert method.options_class().iterations == 80_000
