"""Sources of images for a super-resolution network: `python benchmarks/super_resolution.py`.

CARN-M of ZSQ_DATA, which has no batch norm: its 360 real patches, noise, and the methods that need neither
batch norm nor classes. Each student is fitted on as many images of each and measured on the 80 patches of the
evaluation set. Keeps what is finished in benchmarks/results/super-resolution.json.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from common import BudgetHours, Results, Threads

import zsq
from zsq.bench import Budget
from zsq.config import RuntimeConfig
from zsq.contract import Teacher
from zsq.core.progress import Reporter
from zsq.core.runtime import Runtime
from zsq.images.sources import ImageSet, images_for
from zsq.measure.evaluate import Reference, all_scores, score_teacher
from zsq.students import create
from zsq.teacher import load_teacher
from zsq.widths import Bits

DATA = Path(os.environ.get("ZSQ_DATA", "../shared/data")) / "sr"
CARD = f"file:{DATA / 'carn_m_x4.toml'}"
REAL, NOISE = "real", "noise"
SOURCES = (REAL, NOISE, "gzsq", "gzsq_moment")
FITS = (("ptq", "W8A8"), ("ptq", "W4A8"), ("genie-m", "W4A4"))
METRICS = ("psnr", "ssim", "psnr_teacher", "sqnr", "sqnr_centred")


def images_of(source: str, teacher: Teacher, out: Path, count: int, passes: int, threads: int) -> ImageSet:
    """Real patches, or a method's images, made or continued."""
    if source == REAL:
        return images_for(teacher, DATA / "bsd100_lr48_train.npz", limit=count)
    folder = zsq.generate(
        CARD,
        source,
        count=count,
        iterations=None if source == NOISE else passes,
        out=out / f"{source}-{passes}",
        resume=True,
        runtime=RuntimeConfig(threads=threads),
        reporter=Reporter(),
    )
    return images_for(teacher, folder)


def one_fit(reference: Reference, images: ImageSet, student: str, bits: str, steps: int) -> dict[str, Any]:
    """What a student measures; `steps` are those of each unit, where there are units."""
    teacher, runtime = reference.teacher, reference.runtime
    fitter = create(student, teacher.spec, {} if student == "ptq" else {"iterations": steps}, runtime)
    start = time.perf_counter()
    work = round(fitter.images_trained(teacher, len(images))) or len(images)
    with Reporter().job(f"{student} {bits} on {images.source}", work) as log, runtime.threads_set():
        fitted = fitter.fit(teacher, images.pixels, Bits.parse(bits), log=log)
    seconds = round(time.perf_counter() - start)
    scores = all_scores(fitted, reference).metrics
    return {name: round(scores[name], 2) for name in METRICS} | {"seconds": seconds}


def main(
    budget_hours: BudgetHours = None,
    threads: Threads = 1,
    count: Annotated[int, typer.Option(help="Images of each source.")] = 360,
    passes: Annotated[int, typer.Option(help="Teacher passes per image of a method.")] = 10,
    steps: Annotated[int, typer.Option(help="Steps of a unit of genie-m.")] = 100,
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
        for student, bits in FITS:
            facts = {"source": source, "student": student, "bits": bits, "count": count}
            facts |= {} if student == "ptq" else {"steps": steps}
            facts |= {} if source in (REAL, NOISE) else {"passes": passes}
            if results.has(facts) or budget.spent():
                continue
            images = images_of(source, teacher, out, count, passes, threads or 1)
            results.add(facts | one_fit(reference, images, student, bits, steps))


if __name__ == "__main__":
    typer.run(main)
