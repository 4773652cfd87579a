"""Which networks zsq captures, quantizes and saves: `python benchmarks/zoo.py [--only NAMES] [--genie]`.

All classifiers of torchvision and the networks of timm in `zoo-timm.txt`, with random weights. Each is
captured, and quantizers are placed in it; `ptq` fits it at W8A8, and the student is saved and loaded. Above
`LARGEST` million parameters, networks are captured and placed alone. Images are of 128 px where a network
takes them, else of its own size. `--genie` fits `genie-m` with few iterations on the smallest of each family
that `ptq` was fitted on.

`sqnr` compares a student's outputs with the network's on other images: the signal-to-noise ratio in dB,
without the mean over images. `gain` is by how many dB the network itself makes noise in its images louder:
with random weights it can amplify any. Where `ptq` has a low `sqnr`, that of weights and of activations alone
is measured too, and what explains it. `sqnr_plain` is that of plain rounding in the same places, by code that
knows no quantizer of zsq and clips nothing: if it is low too, the network is the reason. `sqnr_seen` is that
of `ptq` fitted on the images it is compared on: if it is higher, the others have values beyond the ranges of
the few images of the fit. `--explain` adds both to rows without them whose network is not that loud.

Finished rows are kept in `benchmarks/results/zoo.json` and are not measured again; `--again` measures those
that did not work. What did not is summed up in the end.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import torchvision
import typer
from common import BudgetHours, Results
from plain_rounding import plainly_rounded
from torch import Tensor, nn

import zsq
from zsq.bench import Budget
from zsq.contract import FittedStudent, Teacher
from zsq.core.errors import ZsqError
from zsq.core.imagespec import NATURAL_MEAN, NATURAL_STD, ImageSpec
from zsq.core.progress import Reporter
from zsq.core.runtime import Runtime
from zsq.graph import capture
from zsq.placement.sites import place
from zsq.students import create
from zsq.tasks.classify import Classify
from zsq.tasks.embed import Embed
from zsq.tasks.sqnr import SignalToNoise
from zsq.teacher.load import build_without_global_rng
from zsq.teacher.torchvision_models import torchvision_names
from zsq.widths import Bits

TIMM_NAMES = Path(__file__).parent / "zoo-timm.txt"
SMALL_SIDE = 128
NUM_IMAGES = 16  # to fit on, and as many others to compare on
LARGEST = 150  # million parameters that are fitted
ENOUGH_DB = 15.0
LOUD_DB = 35.0  # of `sqnr` and `gain` together: the network alone explains the row
SCALES = (1, 2, 4, 8, 16, 32, 64, 128)  # patches per side of the random images
COMPARED = 4  # seed of the images to compare on
PROBE_DB = 60.0  # of the noise in images that `gain` is measured with
# Student -> bits and the options that make its fit short.
FITS: dict[str, tuple[Bits, dict[str, Any]]] = {
    "ptq": (Bits(8, 8), {}),
    "genie-m": (Bits(8, 8), {"iterations": 5, "batch": 8}),
}


def main(
    only: Annotated[str | None, typer.Option(help="Names, separated by commas; all if none.")] = None,
    genie: Annotated[
        bool, typer.Option("--genie", help="Fit genie-m on the smallest of each family.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Only explain low ratios of ptq.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure again what did not work.")] = False,
    budget_hours: BudgetHours = None,
) -> None:
    """Measure what is missing."""
    torch.set_num_threads(1)
    budget = Budget(budget_hours)
    results = Results("zoo", "OMP_NUM_THREADS=1 python benchmarks/zoo.py", timed=False)
    student = "genie-m" if genie else "ptq"
    kept = [row for row in results.rows() if not (again and row["student"] == student and "why" in row)]
    results.write(images=NUM_IMAGES, rows=kept)
    known = _smallest(kept) if genie else all_names()
    if explain:
        _explain(results, budget)
        return
    wanted = only.split(",") if only else known
    missing = [name for name in wanted if not results.has({"network": name, "student": student})]
    with Reporter().job(f"zoo {student}", len(missing)) as log:
        for name in missing:
            if budget.spent():
                break
            results.add({"network": name, "student": student, **measured(name, student)}, order=_order)
            gc.collect()
            log.advance(1)
    for line in _summary(results.rows()):
        typer.echo(line)


def all_names() -> list[str]:
    """torchvision's classifiers, then timm's networks as teachers are called."""
    return [*torchvision_names(), *(f"timm:{name}" for name in TIMM_NAMES.read_text().split())]


def _explain(results: Results, budget: Budget) -> None:
    """Measure what explains the rows of `ptq` that are low and neither loud nor explained."""
    low = [
        row
        for row in results.rows()
        if row["student"] == "ptq"
        and row.get("sqnr", ENOUGH_DB) < ENOUGH_DB
        and row["sqnr"] + row["gain"] < LOUD_DB
        and "sqnr_seen" not in row
    ]
    with Reporter().job("zoo explained", len(low)) as log:
        for row in low:
            if budget.spent():
                break
            torch.manual_seed(0)
            teacher = _teacher(row["network"], *build(row["network"]))
            settle(teacher)
            results.write(rows=[each for each in results.rows() if each != row])
            results.add(row | _reasons(teacher), order=_order)
            log.advance(1)


def _reasons(teacher: Teacher) -> dict[str, float]:
    """`sqnr_plain` and `sqnr_seen`."""
    bits, options = FITS["ptq"]
    runner = create("ptq", teacher.spec, options, Runtime())
    seen = runner.fit(teacher, _images(teacher.spec, COMPARED), bits)
    return {"sqnr_plain": _plain_ratio(teacher, bits), "sqnr_seen": _noise(seen, teacher)["sqnr"]}


def _order(row: dict[str, Any]) -> Any:
    return row["student"], row["network"].startswith("timm:"), row["network"]


def measured(name: str, student: str) -> dict[str, Any]:
    """What was reached: `captured`, `placed`, `fitted`, `saved`; and `why` if that is not all."""
    torch.manual_seed(0)
    row: dict[str, Any] = {}
    try:
        for facts in _steps(name, student):
            row |= facts
    except ZsqError as error:
        row["why"] = str(error)
    # A benchmark of what fails has to survive it.
    except Exception as error:
        row["why"] = f"{type(error).__name__}: {str(error).strip()[:300]}"
    return row


def _steps(name: str, student: str) -> Iterator[dict[str, Any]]:
    """Facts for the row, after each step that worked."""
    network, own_size = build(name)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    yield {"family": _family(network), "millions": round(millions, 2)}
    teacher = _teacher(name, network, own_size)
    yield {"size": teacher.spec.size[0]}
    settle(teacher)
    captured, seconds = _timed(lambda: capture(network, teacher.example()))
    yield {"captured": True, "capture_seconds": seconds, "nodes": len(captured.graph.nodes)}
    del captured
    bits, options = FITS[student]
    placement = place(network, teacher.example(), bits, fold=True)
    yield {
        "placed": True,
        **{f"{kind}s": len(list(placement.of_kind(kind))) for kind in ("weight", "activation")},
    }
    del placement
    if millions > LARGEST:
        return
    runner = create(student, teacher.spec, options, Runtime())
    fitted, seconds = _timed(lambda: runner.fit(teacher, _images(teacher.spec, 1), bits))
    yield {"fitted": True, "fit_seconds": seconds, **(noise := _noise(fitted, teacher))}
    if student == "ptq" and noise["sqnr"] < ENOUGH_DB:
        for key, alone in (
            ("sqnr_weights", Bits(bits.weights, 32)),
            ("sqnr_activations", Bits(32, bits.activations)),
        ):
            yield {key: _noise(runner.fit(teacher, _images(teacher.spec, 1), alone), teacher)["sqnr"]}
        yield _reasons(teacher)
    _save_and_load(fitted, teacher)
    yield {"saved": True}


def build(name: str) -> tuple[nn.Module, int]:
    """The network with random weights, and the side of its own images."""
    if name.startswith("timm:"):
        import timm

        network = build_without_global_rng(timm.create_model, model_name=name.removeprefix("timm:"))
        return network.eval(), timm.data.resolve_model_data_config(network)["input_size"][-1]
    # Auxiliary heads are for training.
    heads = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = build_without_global_rng(torchvision.models.get_model, name=name, weights=None, **heads)
    (side,) = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size
    return network.eval(), min(side, getattr(network, "image_size", side))


def _family(network: nn.Module) -> str:
    library, *_, module = type(network).__module__.split(".")
    return f"{library} {module}"


def _teacher(name: str, network: nn.Module, own_size: int) -> Teacher:
    """The network as a teacher of small images, or of its own where it takes no others."""
    draw_constants(network)
    for size in (SMALL_SIDE, own_size):
        spec = ImageSpec(size=(size, size), mean=NATURAL_MEAN, std=NATURAL_STD)
        try:
            with torch.no_grad():
                outputs = network(spec.pixels_to_norm(_images(spec, 0)[:2]))
        # Too small for its pooling, or another than that of its positions.
        except (RuntimeError, AssertionError, ValueError):
            if size == own_size:
                raise
            continue
        task = Classify() if getattr(network, "num_classes", 1) else Embed()
        return Teacher(name, network, spec, outputs.shape[1], "0" * 64, task=task)
    raise AssertionError("its own size is the last")


@torch.no_grad()
def draw_constants(network: nn.Module) -> None:
    """Draw what begins as 0, 1 or next to nothing and would be something else after training: scales of
    normalisations, those of branches, which stay small, biases, and tables of positions."""
    for name, parameter in network.named_parameters():
        value = parameter.flatten()[0].item()
        is_scale = not name.endswith("bias") and parameter.numel() == max(parameter.shape, default=1)
        if not bool((parameter == value).all()):
            continue
        if value == 1 and is_scale:
            parameter.uniform_(0.5, 1.5)
        elif abs(value) < 1e-3 and is_scale:
            parameter.uniform_(0.1, 0.4)
        elif value == 0:
            parameter.normal_(0, 0.02)


@torch.no_grad()
def settle(teacher: Teacher) -> None:
    """Batch norm statistics of random images: their mean over two batches."""
    norms = [
        module for module in teacher.network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for seed in (2, 3) if norms else ():
        teacher.network(teacher.spec.pixels_to_norm(_images(teacher.spec, seed)))
    teacher.network.eval()


def _images(spec: ImageSpec, seed: int) -> Tensor:
    """Random images, uint8, each with a colour and with structure at a scale of its own: to a network with
    random weights, images of one kind look alike."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for index in range(NUM_IMAGES):
        side = SCALES[index % len(SCALES)]
        mix, pattern, colour = (
            torch.randn(shape, generator=generator)
            for shape in ((spec.channels,) * 2, (spec.channels, side, side), (spec.channels, 1, 1))
        )
        pattern = torch.einsum("ij,jhw->ihw", mix, pattern)[None]
        grown = F.interpolate(pattern, size=list(spec.size), mode="bilinear", align_corners=False)[0]
        images.append(0.5 + 0.2 * grown + 0.2 * colour)
    return (torch.stack(images) * 255).round().clamp(0, 255).to(torch.uint8)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it makes, and its seconds of processor time."""
    started = time.process_time()
    return work(), round(time.process_time() - started, 1)


@torch.no_grad()
def _noise(fitted: FittedStudent, teacher: Teacher) -> dict[str, float]:
    """`sqnr` of the student and `gain` of the network, both on images that it was not fitted on."""
    norm = teacher.spec.pixels_to_norm(_images(teacher.spec, COMPARED))
    noise = torch.randn(norm.shape, generator=torch.Generator().manual_seed(5))
    noisy = norm + noise * (norm - norm.mean(0)).std() * 10 ** (-PROBE_DB / 20)
    outputs = teacher.network(norm)
    gain = PROBE_DB - _ratio(teacher.network(noisy), outputs)
    return {"sqnr": round(_ratio(fitted.network(norm), outputs), 1), "gain": round(gain, 1)}


@torch.no_grad()
def _plain_ratio(teacher: Teacher, bits: Bits) -> float:
    """What plain rounding leaves of the network's outputs, on the images of `_noise`."""
    norm = teacher.spec.pixels_to_norm(_images(teacher.spec, COMPARED))
    rounded = plainly_rounded(teacher, _images(teacher.spec, 1), bits, seed=6)
    return round(_ratio(rounded(norm), teacher.network(norm)), 1)


def _ratio(noisy: Tensor, exact: Tensor) -> float:
    ratio = SignalToNoise()
    ratio.add(noisy, exact)
    return ratio.metrics()["sqnr_centred"]


@torch.no_grad()
def _save_and_load(fitted: FittedStudent, teacher: Teacher) -> None:
    """Pass a student that gives the same outputs after saving and loading."""
    norm = teacher.spec.pixels_to_norm(_images(teacher.spec, COMPARED)[:2])
    with tempfile.TemporaryDirectory() as folder:
        zsq.save_student(fitted, teacher, folder)
        if not torch.equal(zsq.load_student(folder).network(norm), fitted.network(norm)):
            raise ValueError("the loaded student gives other outputs")


def _smallest(rows: list[dict[str, Any]]) -> list[str]:
    """The smallest network of each family that ptq was fitted on."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["student"] == "ptq" and row.get("fitted"):
            smallest = found.setdefault(row["family"], row)
            found[row["family"]] = min(smallest, row, key=lambda each: each["millions"])
    return [row["network"] for row in found.values()]


def _summary(all_rows: list[dict[str, Any]]) -> Iterator[str]:
    """How many networks got how far, those with low ratios, and why the others did not, by reason."""
    for student in FITS:
        rows = [row for row in all_rows if row["student"] == student]
        reached = (
            f"{sum(step in row for row in rows)} {step}" for step in ("captured", "placed", "fitted", "saved")
        )
        yield f"{student}: {len(rows)} networks, {', '.join(reached)}"
        low = sorted(
            (row for row in rows if row.get("sqnr", ENOUGH_DB) < ENOUGH_DB), key=lambda row: row["sqnr"]
        )
        yield from (
            f"  below {ENOUGH_DB:g} dB: {row['network']} {row['sqnr']}, plain rounding "
            f"{row.get('sqnr_plain')}, fitted on these images {row.get('sqnr_seen')}, gain {row['gain']}, "
            f"weights alone {row.get('sqnr_weights')}, activations alone {row.get('sqnr_activations')}"
            for row in low
            if student == "ptq"
        )
        reasons: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            if "why" in row:
                reasons[row["why"].replace(row["network"], "NETWORK").split(" (")[0]].append(row["network"])
        yield from (f"  {reason}: {', '.join(names)}" for reason, names in reasons.items())


if __name__ == "__main__":
    typer.run(main)
