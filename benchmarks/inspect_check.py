"""Do the layers that `zsq inspect` names hurt most? `python benchmarks/inspect_check.py`.

A student of few bits is inspected. Then each of its worst layers, and as many others drawn at random, is
returned to 8 bits by itself, weights and inputs, and the student is fitted again on the same images. What
helps most hurt most. Its network is compared with the teacher's on images that neither the fit nor `inspect`
saw. The networks are the MobileNetV2 of `train_cifar_mobilenet.py` and the MCUNet of ZSQ_DATA. Kept in
benchmarks/results/inspect.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from common import CIFAR10, TEST, TRAIN, Results, Threads

from zsq.contract import FittedStudent
from zsq.core.runtime import Runtime
from zsq.core.seeding import numpy_generator
from zsq.images.sources import images_for
from zsq.measure.evaluate import Reference, all_scores, score_teacher
from zsq.measure.layernoise import BOTH, LayerNoise, layer_noise
from zsq.students import create
from zsq.teacher import load_teacher
from zsq.widths import Bits, Rows

MORE_BITS, STUDENT = 8, "ptq"
NUM_FITTED, NUM_INSPECTED = 64, 32
WORST, RANDOM = "worst", "random"


@dataclass(frozen=True)
class Subject:
    """A network, the bits to try, its images to fit and inspect, and those to compare on."""

    bits: tuple[str, ...]
    teacher: str
    train: str
    test: str
    num_compared: int


def subjects(mobilenet: str) -> dict[str, Subject]:
    """Name in the table -> what is measured; `mobilenet` is a card."""
    mcunet = CIFAR10.parent / "imagenet_small"
    return {
        "MobileNetV2, CIFAR-10": Subject(("W4A4",), f"file:{mobilenet}", TRAIN, TEST, 2000),
        "MCUNet, ImageNet": Subject(
            # Ranges alone leave nothing of it at W4A4, so that no single layer helps.
            ("W4A4", "W6A6"),
            f"file:{mcunet / 'mcunet.toml'}",
            str(mcunet / "calibration250.zip"),
            str(mcunet / "eval500.zip"),
            250,
        ),
    }


def chosen(layers: Sequence[LayerNoise], count: int) -> list[tuple[str, int]]:
    """(why, place in `layers`): the first, and as many of the others drawn at random."""
    drawn = numpy_generator(0, 0, "inspect check").permutation(range(count, len(layers)))[:count]
    return [(WORST, place) for place in range(count)] + [(RANDOM, int(place)) for place in sorted(drawn)]


def rows_of(subject: Subject, bits: str, count: int, runtime: Runtime) -> list[dict[str, Any]]:
    """One row for the student as it is, and one for each layer that is returned."""
    teacher = load_teacher(subject.teacher).to(runtime.device)
    fitted_on = images_for(teacher, subject.train, limit=NUM_FITTED).pixels
    compared = images_for(teacher, subject.test, limit=subject.num_compared)
    reference = score_teacher(teacher, compared, runtime)

    def fitted(rows: Rows) -> FittedStudent:
        widths = Bits.parse(bits).with_rows(rows)
        return create(STUDENT, teacher.spec, {}, runtime).fit(teacher, fitted_on, widths)

    student = fitted({})
    noise = layer_noise(student, teacher, fitted_on[:NUM_INSPECTED], runtime, parts=(BOTH,))
    found: list[dict[str, Any]] = [{"layer": None, **_measured(student, reference)}]
    typer.echo(found[0])
    for why, place in chosen(noise.layers, count):
        layer = noise.layers[place]
        measured = _measured(fitted({tensor.name: MORE_BITS for tensor in layer.tensors}), reference)
        found.append(
            {
                "layer": layer.layer,
                "why": why,
                "place": place + 1,
                "both": round(layer.both or 0.0, 3),
                **measured,
            }
        )
        typer.echo(found[-1])
    return [{"layers": len(noise.layers), **row} for row in found]


def _measured(student: FittedStudent, reference: Reference) -> dict[str, float]:
    metrics = all_scores(student, reference).metrics
    return {name: round(metrics[name], 3) for name in ("sqnr", "agreement", "accuracy")}


def main(
    mobilenet: Annotated[Path, typer.Option(help="Card of the CIFAR-10 MobileNetV2.")] = Path(
        "outputs/cifar-mobilenet/cifar_mobilenet.toml"
    ),
    count: Annotated[int, typer.Option(help="Worst layers, and random ones.")] = 3,
    threads: Threads = 1,
) -> None:
    """Measure both networks, or what is missing of them."""
    results = Results("inspect", "python benchmarks/inspect_check.py", timed=False)
    runtime = Runtime.resolve(threads=threads)
    for name, subject in subjects(str(mobilenet)).items():
        for bits in subject.bits:
            facts = {"network": name, "bits": bits, "student": STUDENT}
            if not results.has(facts):
                for row in rows_of(subject, bits, count, runtime):
                    results.add(facts | row)


if __name__ == "__main__":
    typer.run(main)
