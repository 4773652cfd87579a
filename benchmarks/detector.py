"""Sources of images for a detector: `python benchmarks/detector.py [--budget-hours H]`.

FastestDet of ZSQ_DATA, its 80 real photos, and as many images of each method and of noise. Each student is
fitted on each, and measured on the 77 photos of eval77 against the teacher's boxes and the true ones. Keeps
what is finished in benchmarks/results/detector.json. Images, and what the bootstrap drew, go to --out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from common import BudgetHours, Results, Threads, images_of, scored_fit

from zsq.bench import Budget
from zsq.core.runtime import Runtime
from zsq.images.sources import images_for
from zsq.measure.confidence import paired_interval
from zsq.measure.evaluate import score_teacher
from zsq.measure.protocol import NOISE, REAL
from zsq.teacher import load_teacher

DATA = Path(os.environ.get("ZSQ_DATA", "../shared/data")) / "detector"
CARD = f"file:{DATA / 'fastestdet.toml'}"
REAL_IMAGES = DATA / "calibration80.zip"
SOURCES = (REAL, NOISE, "dgh", "zeroq", "tsz")
BATCH = 16
# Student, bits.
FITS = (
    ("ptq", "W8A8"),
    ("genie-m", "W8A8"),
    ("genie-m", "W6A6"),
    ("genie-m", "W4A8"),
    ("lsq-kd", "W4A8"),
)
METRICS = ("agreement_ap", "agreement_ap25", "map", "map50", "sqnr", "sqnr_centred")
PAIRED = ("agreement_ap", "map")


def contrasts(rows: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """Each source less real photos and less noise, with paired 95 % intervals."""
    found = []
    for row in rows:
        for other in (REAL, NOISE):
            same = {name: row[name] for name in ("student", "bits", "steps", "count")}
            base = next((r for r in rows if r["source"] == other and same.items() <= r.items()), None)
            paths = [_draws_path(out, each) for each in (row, base) if each is not None]
            if base is None or base is row or len(paths) < 2 or not all(path.exists() for path in paths):
                continue
            own, theirs = (np.load(path) for path in paths)
            line = same | {"source": row["source"], "less": other}
            for name in PAIRED:
                interval = paired_interval(own[name], theirs[name])
                assert interval is not None
                line[name] = round(row[name] - base[name], 2)
                line[f"{name}_ci95"] = [round(end, 2) for end in interval]
            found.append(line)
    return found


def _draws_path(out: Path, row: dict[str, Any]) -> Path:
    return (
        out
        / "draws"
        / ("-".join(str(row[key]) for key in ("source", "student", "bits", "steps", "count")) + ".npz")
    )


def main(
    budget_hours: BudgetHours = None,
    threads: Threads = 1,
    count: Annotated[int, typer.Option(help="Images of each source.")] = 80,
    passes: Annotated[int, typer.Option(help="Teacher passes per image of a method.")] = 100,
    steps: Annotated[int, typer.Option(help="Steps of a unit, or of training.")] = 50,
    out: Annotated[Path, typer.Option(help="Images and draws.")] = Path("outputs/detector"),
) -> None:
    """Measure what is missing and keep it."""
    budget, runtime = Budget(budget_hours), Runtime.resolve(threads=threads)
    teacher = load_teacher(CARD)
    reference = score_teacher(teacher, images_for(teacher, DATA / "eval77.zip", labelled=True), runtime)
    results = Results("detector", "python benchmarks/detector.py")
    assert reference.teacher_scores is not None
    results.write(
        teacher={name: round(reference.teacher_scores.metrics[name], 2) for name in ("map", "map50")}
    )
    (out / "draws").mkdir(parents=True, exist_ok=True)
    for student, bits in FITS:
        for source in SOURCES:
            facts = {"source": source, "student": student, "bits": bits, "steps": steps, "count": count}
            if results.has(facts) or budget.spent():
                continue
            images = images_of(
                source,
                teacher,
                REAL_IMAGES,
                out,
                count=count,
                passes=passes,
                threads=threads,
                batch=BATCH,
            )
            scores, seconds = scored_fit(reference, images, student, bits, steps)
            draws = {name: np.array(scores.replicates[name], np.float32) for name in PAIRED}
            np.savez(_draws_path(out, facts), **draws)  # type: ignore[arg-type]
            found = {name: round(scores.metrics[name], 2) for name in METRICS}
            results.add(facts | {"passes": passes} | found | {"seconds": seconds})
            results.write(contrasts=contrasts(results.rows(), out))


if __name__ == "__main__":
    typer.run(main)
