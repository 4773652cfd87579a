"""Sources of images for a detector: `python benchmarks/detector.py [--budget-hours H]`.

FastestDet of ZSQ_DATA, its 80 real photos, and as many images of each method and of noise. Each student is
fitted on each, and measured on the 77 photos of eval77 against the teacher's boxes and the true ones. Keeps
what is finished in benchmarks/results/detector.json. Images, and what the bootstrap drew, go to --out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from common import BudgetHours, Results, Threads, images_of, option_texts, scored_fit

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
# The usual rates of lsq-kd move an 8-bit grid too far.
SLOW_TRAINING = {"iterations": 100, "batch": 16, "learning_rate": 5e-5, "step_learning_rate": 1e-2}
SMOOTH = ("fold", "smooth")
# The paper's form: the map that all heads read, at 8 bits, for about a fifth of the loss.
FEATURE: dict[str, Any] = {
    "feature": "heads.boxes.0.0",
    "feature_bits": 8,
    "feature_weight": 0.25,
    "teacher_iterations": 10,
}
SLOW_INTERVALS = {"iterations": 60, "batch": 16, "learning_rate": 5e-5, "interval_learning_rate": 1e-4}


class FitSpec(NamedTuple):
    """A student, its bits, its options and the analytic passes around it."""

    student: str
    bits: str
    options: dict[str, Any]
    analytic: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Of a row."""
        return {
            "student": "+".join((self.student, *self.analytic)),
            "bits": self.bits,
            "options": self.options,
        }


FITS = (
    FitSpec("ptq", "W8A8", {}),
    FitSpec("ptq", "W8A8", {"exponent": 2.0}, (*SMOOTH, "correct-bias")),
    FitSpec("ptq", "W8A8", {"exponent": 2.0}, SMOOTH),
    FitSpec("lsq-kd", "W8A8", SLOW_TRAINING, SMOOTH),
    FitSpec("lsq-kd", "W4A8", SLOW_TRAINING | {"learning_rate": 2e-4}),
    FitSpec("qfd", "W8A8", FEATURE | SLOW_INTERVALS),
    FitSpec(
        "qfd",
        "W4A8",
        FEATURE | {"iterations": 100, "batch": 16, "learning_rate": 2e-4, "interval_learning_rate": 3e-4},
    ),
    FitSpec("cfws", "W8A8", {}),
    FitSpec("cfws", "W4A8", {}),
    FitSpec("genie-m", "W8A8", {"iterations": 20}),
    FitSpec("genie-m", "W6A6", {"iterations": 20}),
    FitSpec("genie-m", "W4A8", {"iterations": 20}),
    FitSpec("genie-m", "W4A8", {"iterations": 200}),
)
METRICS = ("agreement_ap", "agreement_ap25", "map", "map50", "sqnr", "sqnr_centred")
PAIRED = ("agreement_ap", "map")


def contrasts(rows: list[dict[str, Any]], kept: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """Each source less real photos and less noise, with paired 95 % intervals: those that are kept, and new
    ones where `out` has the draws of both fits."""
    found = []
    for row in rows:
        for other in (REAL, NOISE):
            same = {name: row[name] for name in ("student", "bits", "options", "count")}
            line = same | {"source": row["source"], "less": other}
            known = next((each for each in kept if line.items() <= each.items()), None)
            if known is not None:
                found.append(known)
                continue
            base = next((r for r in rows if r["source"] == other and same.items() <= r.items()), None)
            paths = [_draws_path(out, each) for each in (row, base) if each is not None]
            if base is None or base is row or len(paths) < 2 or not all(path.exists() for path in paths):
                continue
            own, theirs = (np.load(path) for path in paths)
            for name in PAIRED:
                interval = paired_interval(own[name], theirs[name])
                assert interval is not None
                line[name] = round(row[name] - base[name], 2)
                line[f"{name}_ci95"] = [round(end, 2) for end in interval]
            found.append(line)
    return found


def _draws_path(out: Path, row: dict[str, Any]) -> Path:
    """Named by what distinguishes fits."""
    options = option_texts(row["options"])
    parts = (row["source"], row["student"], row["bits"], *options, row["count"])
    return out / "draws" / ("-".join(map(str, parts)) + ".npz")


def main(
    budget_hours: BudgetHours = None,
    threads: Threads = 1,
    count: Annotated[int, typer.Option(help="Images of each source.")] = 80,
    passes: Annotated[int, typer.Option(help="Teacher passes per image of a method.")] = 20,
    only: Annotated[str | None, typer.Option(help="Only students whose name begins so.")] = None,
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
    for spec in FITS:
        for source in SOURCES:
            facts = {"source": source, "count": count, **spec.facts()}
            unasked = only is not None and not facts["student"].startswith(only)
            if unasked or results.has(facts) or budget.spent():
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
            scores, seconds = scored_fit(
                reference, images, spec.student, spec.bits, spec.options, spec.analytic
            )
            draws = {name: np.array(scores.replicates[name], np.float32) for name in PAIRED}
            np.savez(_draws_path(out, facts), **draws)  # type: ignore[arg-type]
            found = {name: round(scores.metrics[name], 2) for name in METRICS}
            results.add(facts | {"passes": passes} | found | {"seconds": seconds})
            kept = results.read().get("contrasts", [])
            results.write(contrasts=contrasts(results.rows(), kept, out))


if __name__ == "__main__":
    typer.run(main)
