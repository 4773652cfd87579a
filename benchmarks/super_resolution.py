"""Sources of images for a super-resolution network: `python benchmarks/super_resolution.py [--count N]`.

CARN-M of ZSQ_DATA, which has no batch norm: its real patches, noise, and the methods that need neither batch
norm nor classes. Each student is fitted on as many images of each and measured on the 80 patches of the
evaluation set. There are 360 real patches; on one core methods and `genie-m` need hours for as many. Keeps
what is finished in benchmarks/results/super-resolution.json.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from common import BudgetHours, Results, Threads, images_of, scored_fit, takes_passes

from zsq.bench import Budget
from zsq.core.runtime import Runtime
from zsq.images.sources import images_for
from zsq.measure.evaluate import score_teacher
from zsq.measure.protocol import NOISE, REAL
from zsq.teacher import load_teacher

DATA = Path(os.environ.get("ZSQ_DATA", "../shared/data")) / "sr"
CARD = f"file:{DATA / 'carn_m_x4.toml'}"
REAL_IMAGES = DATA / "bsd100_lr48_train.npz"
SOURCES = (REAL, NOISE, "leaves", "gzsq", "gzsq_moment")
# Student, bits, options.
FITS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("ptq", "W8A8", {}),
    ("ptq", "W4A8", {}),
    ("ptq", "W4A4", {}),
    ("genie-m", "W4A4", {"iterations": 20, "batch": 8}),
)
METRICS = ("psnr", "ssim", "psnr_teacher", "sqnr", "sqnr_centred")


def main(
    budget_hours: BudgetHours = None,
    threads: Threads = 1,
    count: Annotated[int, typer.Option(help="Images of each source.")] = 60,
    passes: Annotated[int, typer.Option(help="Teacher passes per image of a method.")] = 10,
    out: Annotated[Path, typer.Option(help="Images.")] = Path("outputs/super-resolution"),
) -> None:
    """Measure what is missing and keep it."""
    budget, runtime = Budget(budget_hours), Runtime.resolve(threads=threads)
    teacher = load_teacher(CARD)
    truth = images_for(teacher, DATA / "bsd100_lr48_eval.npz", labelled=True)
    reference = score_teacher(teacher, truth, runtime)
    results = Results("super-resolution", "python benchmarks/super_resolution.py")
    assert reference.teacher_scores is not None
    results.write(
        teacher={name: round(reference.teacher_scores.metrics[name], 2) for name in ("psnr", "ssim")}
    )
    for source in SOURCES:
        for student, bits, options in FITS:
            facts = {"source": source, "student": student, "bits": bits, "options": options, "count": count}
            facts |= {"passes": passes} if source != REAL and takes_passes(source) else {}
            if results.has(facts) or budget.spent():
                continue
            images = images_of(source, teacher, REAL_IMAGES, out, count=count, passes=passes, threads=threads)
            scores, seconds = scored_fit(reference, images, student, bits, options)
            found = {name: round(scores.metrics[name], 2) for name in METRICS}
            results.add(facts | found | {"seconds": seconds})


if __name__ == "__main__":
    typer.run(main)
