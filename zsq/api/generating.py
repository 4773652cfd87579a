"""Images from a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zsq.api.given import RuntimeGiven, folder_of, path_of, runtime_given, teacher_of, text_of
from zsq.config import (
    GENERATE,
    OFFLINE,
    GenerateConfig,
    validated,
)
from zsq.core.effort import Effort
from zsq.core.modes import usual_modes
from zsq.core.processes import failing_together
from zsq.core.progress import Reporter, reporter_or_silent
from zsq.core.seal import watched
from zsq.core.wording import quantity
from zsq.request.defaults import choice_line, choose
from zsq.runfolder import plain_name, stored_options
from zsq.synthesis import synthesize
from zsq.teacher import load_teacher


@usual_modes()
@failing_together()
def generate(
    teacher: str | Path,
    method: str | None = None,
    *,
    weights: str | Path | None = None,
    count: int | None = GENERATE.count,
    batch: int | None = GENERATE.batch,
    shard_size: int = GENERATE.shard_size,
    seed: int = GENERATE.seed,
    out: str | Path | None = None,
    iterations: int | None = GENERATE.iterations,
    effort: Effort | None = GENERATE.effort,
    real: str | Path | None = GENERATE.real,
    set: Mapping[str, Any] | None = None,
    resume: bool = False,
    sealed: bool = GENERATE.sealed,
    offline: bool = OFFLINE,
    runtime: RuntimeGiven = None,
    reporter: Reporter | None = None,
) -> Path:
    """Make calibration images from a teacher; the run's folder, with `shards/` and `manifest.json`.

    Args:
        teacher: a name as in `zsq list teachers`, such as a torchvision model's or `timm:NAME`; `hf:FOLDER`;
            or `file:card.toml`.
        method: a name as in `zsq list methods`. None: the default for the teacher, as are then
            number of images and iterations where nothing says them.
        count: number of images, 1024 if None. With `resume` a larger one extends the set, and None is what
            the set has.
        batch: images optimised together, the method's own if None.
        iterations: steps; what is tied to them scales along.
        effort: iterations where `iterations` is None; `standard` if None and the network takes 64 px or more,
            else `published`.
        set: overrides of the method's options.
        out: the run's folder, by default the first free `outputs/TEACHER-METHOD`.
        sealed: once the teacher is loaded, open no file but its own and the interpreter's, and no socket; the
            manifest states what was opened. This process opens nothing else meanwhile, in any thread.
        offline: refuse a teacher whose own weights are not on this machine, rather than download them.

    Raises:
        ZsqError: one class per cause, see `zsq.core.errors`.

    Example:
        >>> folder = zsq.generate("embedded:digits", "dgh", count=8, iterations=5, out="digits-dgh")
        >>> item = zsq.ShardDataset(folder)[0]
        >>> item["pixels"].shape, item["label"]
        (torch.Size([1, 32, 32]), -1)
    """
    values = {
        "teacher": teacher_of(teacher),
        "weights": text_of(weights),
        "method": method,
        "count": count,
        "batch": batch,
        "shard_size": shard_size,
        "seed": seed,
        "iterations": iterations,
        "effort": effort,
        "real": text_of(real),
        "set": set or {},
        "sealed": sealed,
        "offline": offline,
        "runtime": runtime_given(runtime),
    }
    if method is not None:
        config = validated(GenerateConfig, values, "generate")
        folder = folder_of(out, f"{plain_name(config.teacher)}-{method}", resume)
        return synthesize.generate(config, folder, resume=resume, reporter=reporter)
    with watched(sealed):
        return _with_own_choice(values, out, resume, reporter)


def _with_own_choice(
    values: dict[str, Any], out: str | Path | None, resume: bool, reporter: Reporter | None
) -> Path:
    """What `generate` does where it chooses the method itself."""
    teacher, count = values["teacher"], values["count"]
    loaded = load_teacher(teacher, path_of(values["weights"]), offline=values["offline"])
    chosen = choose(loaded)
    folder = folder_of(out, f"{plain_name(teacher)}-{chosen.method}", resume)
    config = validated(GenerateConfig, values | {"method": chosen.method}, "generate")
    # A run that goes on says itself how many images it has.
    config = chosen.completed(config, with_count=not (resume and stored_options(folder)))
    iterations = values["effort"] or values["iterations"]
    parts = [
        (None, f"method {config.method}"),
        (count, quantity(config.count, "image") if config.count else ""),
        (iterations, quantity(config.iterations, "iteration") if config.iterations else ""),
    ]
    for line in (choice_line(teacher, parts), *chosen.notes):
        reporter_or_silent(reporter).say(line)
    return synthesize.generate(config, folder, resume=resume, teacher=loaded, reporter=reporter)
