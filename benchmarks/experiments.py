"""Which images a network's student needs: the experiments of `search.py`, by name.

Each is one network, one student and a list of sources. A student is scored by its agreement with the network
on training images that no set uses; no test image is read. Set i has images and a student of seed i.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import RESNET20, TRAIN, WEIGHTS
from torch import Tensor

from zsq.contract import Silent, Teacher
from zsq.core.runtime import Runtime
from zsq.generators import create as create_method
from zsq.graph import capture
from zsq.graph.fold import fold_batch_norms
from zsq.images.sources import load_images
from zsq.measure.evaluate import logits_of
from zsq.measure.protocol import REAL
from zsq.plan import Plan
from zsq.students import create
from zsq.tasks.classify import agreement
from zsq.teacher import load_teacher
from zsq.widths import Bits

FASHION = Path(os.environ.get("ZSQ_DATA", "../shared/data")) / "fashion_vit"
FIRST_LAST, HELD_OUT = 8, 2000


@dataclass(frozen=True)
class Source:
    """Images of a method, each by so many teacher passes; `with_norm`: made for the same network before its
    batch norm was folded."""

    method: str
    passes: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    with_norm: bool = False


@dataclass(frozen=True)
class Experiment:
    """A network, its real images, a student, its steps if it takes any, and the sources; `folded`: batch norm
    is folded beforehand; `options`: what else of the student is not at its default."""

    load: Callable[[], Teacher]
    real: str
    student: str
    bits: str
    steps: int | None
    sources: tuple[Source, ...]
    folded: bool = False
    sets: int = 2
    count: int = 256
    held_out: int = HELD_OUT
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def dsg(passes: int) -> tuple[Source, ...]:
    """DSG and its parts, and what they stand beside."""
    of_set = tuple(Source("dsg", passes, {"scope": "set", "epsilon": e}) for e in (0.9, 0.5, 0.1, 0.0))
    return (
        Source(REAL),
        Source("noise"),
        Source("dsg", passes),
        Source("dsg", passes, {"inhibition": 1e-4}),
        Source("dsg", passes, {"inhibition": 100.0}),
        *of_set,
        Source("dgh", passes),
        Source("dsg", passes, {"scope": "set", "epsilon": 0.1, "inhibition": 100.0}),
        Source("dsg_generative", passes),
        Source("gdfq", passes),
        Source("leaves"),
    )


def pyramid(passes: int) -> tuple[Source, ...]:
    """Our own method, without one of its parts in turn, and what it stands beside."""
    without = (
        {"levels": 1},
        {"relative": False},
        {"betas": [0.9, 0.999]},
        {"confidence_weight": 0.0},
        {"sigma": 0.0},
    )
    return (
        Source(REAL),
        Source("dgh", passes),
        Source("pyramid", passes),
        *(Source("pyramid", passes, options) for options in without),
        Source("leaves"),
    )


def without_norm(passes: int) -> tuple[Source, ...]:
    """What needs no batch norm."""
    plain = {"texture": 0.0}
    return (
        Source(REAL),
        Source("noise"),
        Source("leaves"),
        Source("leaves", options={"light": 0.3, "contrast": 0.35}),
        Source("leaves", options=plain),
        Source("leaves", options={"leaves": 0}),
        Source("leaves", options={"leaves": 0, "exponents": [1.0, 1.0]}),
        Source("gzsq", passes),
        Source("gzsq_moment", passes),
        Source("dgh", passes, with_norm=True),
    )


def of_both_kinds(passes: int) -> tuple[Source, ...]:
    """What batch norm alone is asked for, what attention is, and what needs neither."""
    without = (Source(REAL), Source("noise"), Source("leaves"), Source("ce_tv", passes))
    by_norm = tuple(Source(method, passes) for method in ("zeroq", "dgh", "varied", "pyramid"))
    by_attention = tuple(Source(method, passes) for method in ("psaq", "mimiq", "fdd", "sardfq"))
    return *without, *by_norm, *by_attention


def varied(passes: int) -> tuple[Source, ...]:
    """Our own method for few bits, without what makes its images differ, and what it stands beside."""
    return (
        Source(REAL),
        Source("dgh", passes),
        Source("dgh", 250),
        Source("varied", passes),
        Source("varied", 250),
        Source("varied", passes, {"light": 0.0, "contrast": 0.0}),
    )


def sardfq(passes: int) -> tuple[Source, ...]:
    """How much the attention prior may count."""
    return (
        Source(REAL),
        Source("mimiq", passes),
        *(Source("sardfq", passes, {"prior_weight": w}) for w in (0.0, 10.0, 100.0, 1000.0)),
    )


EXPERIMENTS = {
    "dsg-digits": Experiment(
        lambda: load_teacher("embedded:digits"),
        "embedded:digits:train",
        "lsq-kd",
        "W2A4",
        200,
        dsg(100),
        held_out=500,
        options={"batch_norm": "frozen"},
    ),
    "dsg-resnet20": Experiment(
        lambda: load_teacher(RESNET20, WEIGHTS), TRAIN, "genie-m", "W2A4", 100, dsg(50), sets=1
    ),
    "pyramid-resnet20": Experiment(
        lambda: load_teacher(RESNET20, WEIGHTS), TRAIN, "genie-m", "W2A4", 100, pyramid(100)
    ),
    "varied-resnet20": Experiment(
        lambda: load_teacher(RESNET20, WEIGHTS),
        TRAIN,
        "genie-m",
        "W2A2",
        500,
        varied(100),
        sets=3,
        count=512,
    ),
    "folded-resnet20": Experiment(
        lambda: load_teacher(RESNET20, WEIGHTS), TRAIN, "genie-m", "W2A4", 100, without_norm(50), folded=True
    ),
    "fashion-vit": Experiment(
        lambda: load_teacher(f"file:{FASHION / 'fashion_vit.toml'}"),
        str(FASHION / "train5000.zip"),
        "genie-m",
        "W4A4",
        100,
        (Source(REAL), Source("noise"), Source("leaves")),
    ),
    "sardfq-fashion": Experiment(
        lambda: load_teacher(f"file:{FASHION / 'fashion_vit.toml'}"),
        str(FASHION / "train5000.zip"),
        "erq",
        "W4A4",
        None,
        sardfq(300),
        count=32,
    ),
    "sardfq-digits": Experiment(
        lambda: load_teacher("embedded:digits-vit"),
        "embedded:digits:train",
        "erq",
        "W4A4",
        None,
        sardfq(300),
        count=32,
        held_out=500,
    ),
    # Both batch norm and attention: `train_cifar_vit.py` makes it.
    "cifar-vit-bn": Experiment(
        lambda: load_teacher("file:outputs/cifar-vit/cifar_vit_bn.toml"),
        TRAIN,
        "genie-m",
        "W4A4",
        100,
        of_both_kinds(100),
        count=32,
    ),
}


@dataclass(frozen=True)
class Trial:
    """One fit of an experiment: on set `index` of a source."""

    source: Source
    index: int


class Loaded:
    """An experiment with its network and its real images."""

    def __init__(self, asked: Experiment, runtime: Runtime) -> None:
        """The last of the shuffled images are held out.

        Raises:
            ValueError: there are too few images for all sets.
        """
        self.asked, self.runtime = asked, runtime
        self.original = asked.load()
        self.teacher = folded(self.original) if asked.folded else self.original
        pixels = load_images(asked.real, self.teacher.spec).pixels
        pixels = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(77))]
        self.real, self.held_out = pixels[: -asked.held_out], pixels[-asked.held_out :]
        if asked.sets * asked.count > len(self.real):
            raise ValueError("sets and held-out images overlap")
        self.expected = logits_of(self.teacher, self.held_out, runtime)

    def agreement(self, trial: Trial) -> float:
        """In points, of one fit."""
        asked, teacher, runtime = self.asked, self.teacher, self.runtime
        steps = {} if asked.steps is None else {"iterations": asked.steps}
        fitter = create(asked.student, teacher.spec, {**steps, **asked.options}, runtime)
        fitted = fitter.fit(
            teacher, self.images(trial), Bits.parse(asked.bits), first_last=FIRST_LAST, seed=trial.index
        )
        return agreement(logits_of(fitted, self.held_out, runtime), self.expected)

    def images(self, trial: Trial) -> Tensor:
        """uint8 images of the trial's set."""
        count = self.asked.count
        if trial.source.method == REAL:
            return self.real[trial.index * count :][:count]
        return made(trial.source, self.original, self.teacher, count, trial.index, self.runtime)


def trials(asked: Experiment) -> list[Trial]:
    """All fits, set by set."""
    return [Trial(source, index) for index in range(asked.sets) for source in asked.sources]


def facts(name: str, asked: Experiment, trial: Trial) -> dict[str, Any]:
    """What tells a fit from all others."""
    source = trial.source
    return {
        "experiment": name,
        "source": source.method,
        "options": dict(source.options),
        "passes": source.passes,
        "count": asked.count,
        "student": asked.student,
        "bits": asked.bits,
        "steps": asked.steps,
        "set": trial.index,
    }


def folded(teacher: Teacher) -> Teacher:
    """The same network without batch norm."""
    network = capture(teacher.network, teacher.example())
    fold_batch_norms(network)
    return dataclasses.replace(teacher, name=f"{teacher.name}-folded", network=network)


def made(
    source: Source, original: Teacher, teacher: Teacher, count: int, seed: int, runtime: Runtime
) -> Tensor:
    """uint8 images of a method, which gets its passes whether an iteration takes one of each image, more, or
    is a step of a network's training."""
    wanted = original if source.with_norm else teacher
    batch = min(count, 128)
    method = create_method(source.method, wanted, source.options, source.passes or None, runtime, batch)
    if source.passes and (taken := method.teacher_passes(method.options, count)) != source.passes * count:
        iterations = source.passes * count * source.passes // taken
        method = create_method(source.method, wanted, source.options, iterations, runtime, batch)
    plan = Plan(count, batch, count, seed, method.grouping(method.options))
    with tempfile.TemporaryDirectory() as folder:
        method.prepare(seed, Path(folder), Silent())
    images = [method.synthesize(group, Silent()).standard_NCHW for group in plan.groups]
    return wanted.spec.standard_to_pixels(torch.cat(images))
