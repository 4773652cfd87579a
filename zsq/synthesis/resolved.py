"""A run of `zsq generate` with everything resolved: options, teacher, method, plan and runtime."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from zsq.config import DEFAULT_COUNT, GenerateConfig, PositiveInt
from zsq.contract import Generator, Teacher
from zsq.core.errors import OptionError, RunFolderError
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options, check_given_once
from zsq.core.processes import Processes
from zsq.core.runtime import Runtime
from zsq.core.wording import quantity
from zsq.engine.estimate import forward_gflops
from zsq.engine.finite import require_finite_outputs
from zsq.generators import default_effort, effort_iterations, method_class, require
from zsq.images.imageset import ImageSet
from zsq.images.sources import images_for
from zsq.plan import Plan
from zsq.runfolder import RUN_FILE, stored_options
from zsq.synthesis.trial import seconds_per_pass
from zsq.teacher import load_teacher


@dataclass(frozen=True)
class ResolvedRun:
    """A run with everything resolved, before anything is written."""

    config: GenerateConfig
    teacher: Teacher
    method: Generator
    plan: Plan
    runtime: Runtime
    out: Path
    images: ImageSet | None = None

    @property
    def data_read(self) -> str:
        """What of the real world the run reads: nothing, where `--real` names images made without any."""
        if self.images is not None and self.images.provenance is not None:
            return self.images.provenance.data_read
        return self.method.facts.data_read

    @property
    def shards(self) -> Path:
        """Folder of the shards."""
        return self.out / "shards"

    @property
    def options(self) -> dict[str, Any]:
        """The method's resolved options, as JSON holds them."""
        return self.method.options.model_dump(mode="json")

    @cached_property
    def seconds_per_pass(self) -> float:
        """Of one image's uncompiled teacher pass on this machine, measured the first time it is asked for."""
        passes = self.method.teacher_passes(self.method.options, self.plan.count)
        if not passes:
            return 0.0
        cls = type(self.method)
        return seconds_per_pass(self.teacher, cls, self.config.set, passes, self.plan.batch, self.runtime)

    @cached_property
    def network_sha256(self) -> str:
        """Of the tensors as loaded: a card may take another entry of the same weights file."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.teacher.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def resolved(self) -> dict[str, Any]:
        """What decides the bytes; the content of `run.json`."""
        return {
            "command": "generate",
            "teacher": self.teacher.name,
            "weights_sha256": self.teacher.weights_sha256,
            "network_sha256": self.network_sha256,
            "method": self.method.name,
            "set": self.options,
            "real": self.config.real,
            **({"real_sha256": _images_sha256(self.images)} if self.images is not None else {}),
            "count": self.plan.count,
            **({"counts": list(self.plan.counts)} if self.plan.earlier else {}),
            "batch": self.plan.batch,
            "shard_size": self.plan.shard_size,
            "seed": self.plan.seed,
            **({"sealed": True} if self.config.sealed else {}),
            **self.runtime.record(),
        }


def method_options(
    config: GenerateConfig, spec: ImageSpec, count: int
) -> tuple[type[Generator], int, Options]:
    """The method that a configuration names, its batch, and its options for `count` images of `spec`.

    Raises:
        UnknownNameError: no such method.
        OptionError: an option that it does not have, a wrong value, or iterations given twice.
    """
    cls = method_class(config.method)
    check_given_once("--iterations", config.iterations, config.set)
    batch = min(config.batch or cls.default_batch(spec), count)
    effort = config.effort or default_effort(spec)
    iterations = config.iterations or effort_iterations(cls, spec, effort)
    return cls, batch, cls.options_class.resolve(config.method, spec, config.set, iterations, batch)


def counts_of(config: GenerateConfig, out: Path, resume: bool) -> tuple[int, ...]:
    """Images after the first run in `out` and after each extension; the last is what is asked for.

    Raises:
        RunFolderError: the run there has more images than are asked for, or says nothing readable.
    """
    stored = stored_options(out) if resume else {}
    if not stored:
        return (config.count or DEFAULT_COUNT,)
    try:
        counts = TypeAdapter(tuple[PositiveInt, ...]).validate_python(stored.get("counts", [stored["count"]]))
        last = counts[-1]
    except (ValidationError, LookupError):
        found = f"{out / RUN_FILE} does not say how many images"
        raise RunFolderError(found, "the folder of an earlier run", "choose another --out") from None
    if config.count is not None and config.count < last:
        raise RunFolderError(
            f"--resume with count = {config.count}",
            f"at least the {quantity(last, 'image')} of {out}",
            "a set can be extended but not cut; quantize and gap take a --count of their own",
        )
    return counts if config.count in (None, last) else (*counts, config.count)


def check_method(config: GenerateConfig, teacher: Teacher) -> None:
    """Refuse a configuration whose method cannot work, before anything is built.

    Raises:
        ZsqError: this teacher does not suit it, it gets images that it does not read, or none, or an option
            that it does not have.
    """
    _check_reads(config)
    require(config.method, teacher)
    method_options(config, teacher.spec, config.count or DEFAULT_COUNT)


def _check_reads(config: GenerateConfig) -> None:
    facts = method_class(config.method).facts
    if config.real is not None and not facts.needs_real:
        raise OptionError(f"--real {config.real}", f"no --real: {config.method} reads no images")
    if config.real is None and facts.needs_real:
        what = f"{facts.data_read}, or the folder of a zsq run"
        raise OptionError(f"{config.method} without --real", f"--real SRC: {what}")
    if config.sealed and config.real is not None:
        raise OptionError("--sealed with --real", "a run that reads no images")


def resolve(
    config: GenerateConfig, out: Path, teacher: Teacher | None = None, counts: tuple[int, ...] = ()
) -> ResolvedRun:
    """Check every option and build the parts; writes nothing.

    Args:
        counts: see `Plan.counts`; what the first run had decides batch and runtime of all extensions.

    Raises:
        ZsqError: an option, a teacher or a combination of both that cannot work.
    """
    _check_reads(config)
    if teacher is None:
        weights = Path(config.weights) if config.weights is not None else None
        teacher = load_teacher(config.teacher, weights, offline=config.offline)
    require(config.method, teacher)
    require_finite_outputs(teacher)
    counts = counts or (config.count or DEFAULT_COUNT,)
    cls, batch, options = method_options(config, teacher.spec, counts[0])
    passes = cls.teacher_passes(options, counts[0])
    asked = config.runtime.model_dump()
    asked["threads"] = Processes.started().threads(asked["threads"])
    runtime = Runtime.resolve(
        **asked,
        total_gflops=forward_gflops(teacher) * passes if passes else 0.0,
    )
    plan = Plan(
        count=counts[-1],
        batch=batch,
        shard_size=config.shard_size,
        seed=config.seed,
        batches_per_group=cls.grouping(options),
        earlier=counts[:-1],
    )
    method = cls(teacher.to(runtime.device), options, runtime)
    images = None
    if config.real is not None:
        images = images_for(teacher, config.real, one_per_class=True)
        method.read(images.pixels, images.labels)
    return ResolvedRun(config, teacher, method, plan, runtime, out, images)


def _images_sha256(images: ImageSet) -> str:
    parts = (images.pixels.numpy().tobytes(), images.labels.numpy().tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()
