"""Images from a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zsq.api.given import folder_of, plain_name, text_of
from zsq.config import (
    GENERATE,
    OFFLINE,
    RUNTIME,
    GenerateConfig,
    RuntimeConfig,
    validated,
)
from zsq.core.effort import Effort
from zsq.core.progress import Reporter
from zsq.synthesis import synthesize


def generate(
    teacher: str,
    method: str,
    *,
    weights: str | Path | None = None,
    count: int | None = GENERATE.count,
    batch: int | None = GENERATE.batch,
    shard_size: int = GENERATE.shard_size,
    seed: int = GENERATE.seed,
    out: str | Path | None = None,
    iterations: int | None = GENERATE.iterations,
    effort: Effort | None = GENERATE.effort,
    real: str | None = GENERATE.real,
    set: Mapping[str, Any] | None = None,
    resume: bool = False,
    offline: bool = OFFLINE,
    runtime: RuntimeConfig | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Make calibration images from a teacher; the run's folder, with `shards/` and `manifest.json`.

    Args:
        teacher: a name as in `zsq list teachers`, such as a torchvision model's or `timm:NAME`; `hf:FOLDER`;
            or `file:card.toml`.
        count: number of images, 1024 if None. With `resume` a larger one extends the set, and None is what
            the set has.
        batch: images optimised together, the method's own if None.
        iterations: steps; what is tied to them scales along.
        effort: iterations where `iterations` is None; `standard` if None and the network takes 64 px or more,
            else `published`.
        set: overrides of the method's options.
        out: the run's folder, by default the first free `outputs/TEACHER-METHOD`.
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
        "teacher": teacher,
        "weights": text_of(weights),
        "method": method,
        "count": count,
        "batch": batch,
        "shard_size": shard_size,
        "seed": seed,
        "iterations": iterations,
        "effort": effort,
        "real": real,
        "set": dict(set or {}),
        "offline": offline,
        "runtime": runtime or RUNTIME,
    }
    config = validated(GenerateConfig, values, "generate")
    folder = folder_of(out, f"{plain_name(teacher)}-{method}", resume)
    return synthesize.generate(config, folder, resume=resume, reporter=reporter)
