"""Methods: one file each, one line each here. Other packages add theirs through the entry point group
`zsq.generators` (name = "package.module:Class")."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from zsq.contract import Generator, Teacher
from zsq.core.effort import Effort
from zsq.core.errors import UnknownNameError, UsageError
from zsq.core.imagespec import ImageSpec
from zsq.core.runtime import Runtime
from zsq.engine import suitability
from zsq.generators.ce_tv import CETV
from zsq.generators.clusterq import ClusterQ
from zsq.generators.deepinversion import DeepInversion
from zsq.generators.dgh import DGH, DGHOptions
from zsq.generators.dsg import DSG
from zsq.generators.dsg_generative import DSGGenerative
from zsq.generators.fdd import FDD
from zsq.generators.fdda import FDDA
from zsq.generators.gdfq import GDFQ
from zsq.generators.genie import Genie
from zsq.generators.gzsq import GZSQ, GZSQMoment
from zsq.generators.intraq import IntraQ
from zsq.generators.leaves import Leaves
from zsq.generators.mimiq import MimiQ
from zsq.generators.noise import Noise
from zsq.generators.psaq import PSAQ
from zsq.generators.pyramid import PyramidMethod
from zsq.generators.qimera import Qimera
from zsq.generators.sardfq import SARDFQ
from zsq.generators.tsz import TSZ
from zsq.generators.varied import Varied
from zsq.generators.zeroq import ZeroQ

# What `--effort quick` is: on two cores with AVX2 alone, 1024 images of ResNet-18 within an hour.
QUICK_ITERATIONS = 30
EFFORT_SIZE = 64

METHODS: dict[str, type[Generator]] = {
    "noise": Noise,
    "leaves": Leaves,
    "zeroq": ZeroQ,
    "deepinversion": DeepInversion,
    "dsg": DSG,
    "dsg_generative": DSGGenerative,
    "dgh": DGH,
    "pyramid": PyramidMethod,
    "varied": Varied,
    "clusterq": ClusterQ,
    "intraq": IntraQ,
    "fdda": FDDA,
    "gzsq": GZSQ,
    "gzsq_moment": GZSQMoment,
    "genie": Genie,
    "gdfq": GDFQ,
    "qimera": Qimera,
    "tsz": TSZ,
    "psaq": PSAQ,
    "fdd": FDD,
    "mimiq": MimiQ,
    "sardfq": SARDFQ,
    "ce_tv": CETV,
}


def available_methods() -> dict[str, type[Generator]]:
    """The methods of this package and of every installed plug-in.

    Raises:
        UsageError: a plug-in takes a name that is already taken.
    """
    methods = dict(METHODS)
    for point in _plug_ins():
        if point.name in methods:
            raise UsageError(f"plug-in '{point.value}' names its method '{point.name}', which exists already")
        methods[point.name] = point.load()
    return methods


@functools.cache
def _plug_ins() -> tuple[EntryPoint, ...]:
    """What installed packages name; looking through all of them takes longer than to make an image."""
    return tuple(entry_points(group="zsq.generators"))


def method_class(name: str) -> type[Generator]:
    """The class behind a method's name.

    Raises:
        UnknownNameError: there is none.
    """
    methods = available_methods()
    if name not in methods:
        raise UnknownNameError("method", name, methods, "zsq list methods")
    return methods[name]


def require(name: str, teacher: Teacher) -> None:
    """Refuse a teacher that lacks what a method's facts ask for; the message names the methods that suit it.

    Raises:
        UnknownNameError: no such method.
        NoBatchNormError, MismatchError: see `zsq.engine.suitability.require`.
    """
    others = {other: cls.facts for other, cls in available_methods().items() if not cls.facts.needs_real}
    suitability.require(teacher, name, method_class(name).facts, others)


def suited(teacher: Teacher) -> dict[str, str | None]:
    """Every method: None for those that suit `teacher`, in the order in which to try them, then in one line
    why the others do not."""
    facts = {name: cls.facts for name, cls in available_methods().items()}
    reasons = suitability.refusals(teacher, facts)
    fit = suitability.ordered([name for name, reason in reasons.items() if reason is None], facts)
    return dict.fromkeys(fit) | {name: reason for name, reason in reasons.items() if reason is not None}


def default_effort(spec: ImageSpec) -> Effort:
    """`standard` for networks that take 64 px or more, where published lengths take hours; else
    `published`."""
    return "standard" if max(spec.network_size) >= EFFORT_SIZE else "published"


def effort_iterations(cls: type[Generator], spec: ImageSpec, effort: Effort) -> int | None:
    """Iterations of a method at an effort, None for a method that has none.

    A method without a curve of its own takes the number of DGH's. One that trains a network for all images
    takes DGH's share of its published length: that training is the same for any number of images.
    """
    published = getattr(cls.options_class.resolve(cls.name, spec, {}), "iterations", None)
    if published is None or effort == "published":
        return published
    number = QUICK_ITERATIONS if effort == "quick" else (cls.curve or DGH.curve).standard
    if cls.facts.trains_network and cls.curve is None:
        return max(1, round(published * number / DGHOptions.model_fields["iterations"].default))
    return min(number, published)


def measured(cls: type[Generator]) -> str:
    """What is known of a method's quality at fewer iterations, in one line."""
    return cls.curve.measured if cls.curve else "no curve of its own, so its standard is that of dgh"


def create(
    name: str,
    teacher: Teacher,
    overrides: Mapping[str, Any] | None = None,
    iterations: int | None = None,
    runtime: Runtime | None = None,
    batch: int | None = None,
) -> Generator:
    """A method ready to synthesize for this teacher; its options are resolved for the teacher's image size
    and batches of `batch`.

    Raises:
        UnknownNameError, OptionError, NoBatchNormError, MismatchError: see `Options.resolve`, `require`.
    """
    cls = method_class(name)
    require(name, teacher)
    options = cls.options_class.resolve(name, teacher.spec, overrides or {}, iterations, batch)
    return cls(teacher, options, runtime or Runtime())
