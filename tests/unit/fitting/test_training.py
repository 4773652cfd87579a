"""The training loop by itself: no classes, no quantizers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import image_spec

from zsq.contract import Fit, Teacher
from zsq.core.runtime import Runtime
from zsq.fitting import training as training_module
from zsq.fitting.training import Course, Training, TrainingOptions, shuffled_batches
from zsq.widths import Bits

SPEC = image_spec(1, (6, 6))


class Log:
    def __init__(self):
        self.amount, self.losses = 0, []

    def advance(self, amount, **values):
        self.amount += amount
        self.losses.append(values["loss"])


def embedder(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(144, 8),
        ]
        return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (48, 1, 6, 6), dtype=torch.uint8, generator=generator)


def cosine_loss(output_ND, target_ND):
    return F.mse_loss(F.normalize(output_ND), F.normalize(target_ND))


def asked(pixels, bits="W4A4", seed=0, log=None):
    teacher = Teacher("toy", embedder(2), SPEC, 8, "0" * 64)
    return Fit(teacher, pixels, Bits.parse(bits), None, seed, log or Log())


def train(pixels, course=None, loss=cosine_loss, log=None, seed=0, bits="W4A4", **options):
    network, target = embedder(1), embedder(2).eval().requires_grad_(False)
    course = {"groups": [{"params": list(network.parameters())}], "structure": "toy", **(course or {})}
    options = TrainingOptions(**{"iterations": 40, "batch": 16, "learning_rate": 1e-2, **options})
    training = Training("toy", options, Runtime(), loss)
    training.run(Course(network, target, **course), asked(pixels, bits, seed, log or Log()))
    return network


def test_an_embedding_network_follows_another(pixels):
    log = Log()
    network = train(pixels, log=log)
    assert log.amount == 40 * 16 and log.losses[1] < 0.6 * log.losses[0]
    assert not network.training and not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    "mode, bits, moves",
    [
        ("frozen", "W2A4", False),
        ("train", "W8A8", True),
        ("auto", "W3A8", True),
        ("auto", "W4A2", False),
        ("auto", "W32A32", False),
    ],
)
def test_statistics_move_in_train_mode_which_auto_is_where_weights_are_coarse(pixels, mode, bits, moves):
    trained = train(pixels, batch_norm=mode, bits=bits)
    assert moves == (not torch.equal(trained[1].running_mean, embedder(1)[1].running_mean))


def test_a_twin_shows_more_than_the_network_returns(pixels):
    class Twin(nn.Module):
        def __init__(self, layers):
            super().__init__()
            for name, layer in layers.named_children():
                self.add_module(name, layer)

        def forward(self, x):
            feature = getattr(self, "3")(getattr(self, "2")(getattr(self, "1")(getattr(self, "0")(x))))
            return getattr(self, "4")(feature), feature

    seen = []

    def loss(outputs, target):
        seen.append(tuple(part.shape[1] for part in outputs))
        return F.mse_loss(outputs[0], target)

    network = embedder(1)
    groups = [{"params": list(network.parameters())}]
    training = Training("toy", TrainingOptions(iterations=3, batch=4), Runtime(), loss)
    course = Course(network, embedder(2), groups, "toy", taught=Twin(embedder(3)))
    training.run(course, asked(pixels))
    assert seen == [(8, 144)] * 3
    assert not torch.equal(network[4].weight, embedder(1)[4].weight), "the network trains, not the twin"
    assert not torch.equal(network[4].weight, embedder(3)[4].weight)


def test_structures_that_no_fit_uses_any_more_are_forgotten(pixels, monkeypatch):
    monkeypatch.setattr(training_module, "MOST_TWINS", 3)
    training = Training("toy", TrainingOptions(iterations=1, batch=16), Runtime(), cosine_loss)
    target = embedder(2).eval().requires_grad_(False)
    for structure in ("first", "second", "third"):
        network = embedder(1)
        course = Course(network, target, [{"params": list(network.parameters())}], structure)
        training.run(course, asked(pixels))
    assert len(training._twins) == 3 and ("target", target) in training._twins


def test_hooks_surround_each_step(pixels):
    calls = []
    course = {"before_step": calls.append, "after_step": lambda: calls.append("after")}
    train(pixels, course, iterations=3)
    assert calls == [1, "after", 2, "after", 3, "after"]


def test_sgd_steps_are_those_of_the_closed_form(pixels):
    """Nesterov, weight decay, a tenfold fall and clipping, on a loss whose gradient is 3 at every weight."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 1, bias=False))
    start = network[1].weight.detach().double().numpy().copy()
    options = TrainingOptions(
        iterations=4, batch=4, optimizer="sgd", learning_rate=0.1, momentum=0.9, nesterov=True,
        weight_decay=0.01, schedule="step", decay_every=2, clip_norm=6.0,
    )  # fmt: skip
    training = Training("toy", options, Runtime(), lambda output, target: 3 * network[1].weight.sum())
    # The loss sees the network itself: its template is replaced by its tensors, which are the same objects.
    groups = [{"params": list(network.parameters())}]
    training.run(Course(network, embedder(2), groups, "toy"), asked(pixels))
    expected, velocity = start, 0.0
    for step in range(4):
        gradient = np.full_like(expected, 3.0) * (6 / (3 * 6)) + 0.01 * expected
        velocity = 0.9 * velocity + gradient
        expected = expected - (0.1 if step < 2 else 0.01) * (gradient + 0.9 * velocity)
    np.testing.assert_allclose(network[1].weight.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_batches_are_whole_passes_one_after_the_other():
    batches = shuffled_batches(10, 4, 5, 0, "toy")
    assert batches.shape == (5, 4)
    for part in batches.flatten().split(10):
        assert sorted(part.tolist()) == list(range(10))
    assert not torch.equal(batches, shuffled_batches(10, 4, 5, 0, "other"))


class Shown(nn.Module):
    """Returns its images."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.factor


def views_of(pixels, **options):
    """What the network and its target see in one step."""
    seen = []

    def loss(output, target):
        seen.append((output.detach().clone(), target))
        return F.mse_loss(output, target)

    network = Shown()
    training = Training("toy", TrainingOptions(iterations=1, batch=16, **options), Runtime(), loss)
    course = Course(network, Shown().requires_grad_(False), [{"params": [network.factor]}], "toy")
    training.run(course, asked(pixels))
    (pair,) = seen
    return pair


@pytest.mark.parametrize("view", ["mixup", "gain", "cutmix"])
def test_network_and_target_see_the_same_view(pixels, view):
    plain, _ = views_of(pixels)
    off, _ = views_of(pixels, **{view: 0.0})
    network, target = views_of(pixels, **{view: 0.5})
    assert torch.equal(network, target) and torch.equal(off, plain)
    changed = (network != plain).flatten(1).any(1)
    assert changed.float().mean() > 0.5
