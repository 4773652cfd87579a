"""Learning rates against torch's own schedulers and closed forms."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from zsq.engine.schedules import Cosine, Exponential, Plateau, Schedule


def rates(schedule, losses):
    """The rate each iteration runs with, and the one after the last."""
    found = [schedule.rate.item()]
    for iteration, loss in enumerate(losses):
        schedule.step(iteration, torch.as_tensor(loss, dtype=torch.float32))
        found.append(schedule.rate.item())
    return found


def losses_of(kind):
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(400, generator=generator).cumsum(0).abs() + 1
    falling = torch.linspace(5, 1, 400).exp()
    barely = 1 - 4e-5 * torch.arange(400)  # a step is below the threshold of 0.01 %, three are above
    return {"walk": walk, "falling": falling, "barely": barely, "flat": torch.ones(400)}[kind].tolist()


@pytest.mark.parametrize("patience", [0, 3, 20])
@pytest.mark.parametrize("kind", ["walk", "falling", "barely", "flat"])
def test_plateau_is_torchs_reduce_on_plateau(kind, patience):
    losses = losses_of(kind)
    found = rates(Plateau(0.5, 400, "cpu", factor=0.3, patience=patience, floor=1e-4), losses)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.3, patience=patience, min_lr=1e-4)
    wanted = [0.5]
    for loss in losses:
        scheduler.step(loss)
        wanted.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx(wanted, rel=1e-5)
    assert kind != "walk" or len(set(found)) > 2


def test_plateau_stays_at_its_floor():
    found = rates(Plateau(0.5, 100, "cpu", factor=0.1, patience=0, floor=1e-2), [1.0] * 100)
    assert found[-1] == pytest.approx(1e-2)


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_cosine_after_a_linear_warm_up(warmup):
    found = rates(Cosine(0.2, 50, "cpu", warmup), [0.0] * 50)
    for iteration, rate in enumerate(found[:-1]):
        if iteration < warmup:
            wanted = 0.2 * (iteration + 1) / warmup
        else:
            wanted = 0.1 * (1 + math.cos(math.pi * (iteration - warmup) / (50 - warmup)))
        assert rate == pytest.approx(wanted, rel=1e-5)
    assert found[-1] == pytest.approx(0, abs=1e-7)


def test_cosine_shorter_than_its_warm_up_is_finite():
    assert all(math.isfinite(rate) for rate in rates(Cosine(0.2, 3, "cpu", warmup=3), [0.0] * 3))


def test_exponential_falls_in_steps():
    found = rates(Exponential(0.1, 20, "cpu", factor=0.5, every=4), [0.0] * 19)
    assert found == pytest.approx([0.1 * 0.5 ** (i // 4) for i in range(20)])


def test_constant():
    assert rates(Schedule(0.3, 5, "cpu"), [9.0, 1.0, 5.0]) == pytest.approx([0.3] * 4)


def test_optimizers_read_the_same_tensor():
    schedule = Exponential(1.0, 4, "cpu", factor=0.5, every=1)
    value = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.Adam([{"params": [value], "lr": schedule.rate}], fused=True)
    moved = []
    for iteration in range(3):
        before = value.item()
        value.grad = torch.ones(())
        optimizer.step()
        schedule.step(iteration, torch.zeros(()))
        moved.append(before - value.item())
    assert moved == pytest.approx([1.0, 0.5, 0.25], rel=1e-4)
