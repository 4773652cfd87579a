"""One student from a teacher and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zsq.api.given import (
    RuntimeGiven,
    check_read,
    images_given,
    runtime_given,
    several,
    teacher_of,
    text_of,
    widths_given,
)
from zsq.config import (
    IMAGES,
    OFFLINE,
    QUANTIZE,
    RequestConfig,
    validated,
)
from zsq.core.effort import Effort
from zsq.core.errors import OptionError
from zsq.core.files import output_path
from zsq.core.modes import usual_modes
from zsq.core.progress import Reporter, reporter_or_silent
from zsq.measure.quantize import Places, Quantized
from zsq.request.fulfil import fulfil
from zsq.runfolder import file_out
from zsq.widths import Rows


@usual_modes()
def quantize(
    teacher: str | Path,
    images: str | Path | None = QUANTIZE.images,
    student: str | None = QUANTIZE.student,
    bits: str | Sequence[str] | None = None,
    *,
    method: str | None = QUANTIZE.method,
    effort: Effort | None = QUANTIZE.effort,
    weights: str | Path | None = None,
    first_last: int | None = QUANTIZE.first_last,
    widths: str | Path | Rows | None = None,
    seed: int = QUANTIZE.seed,
    eval: str | Path | None = QUANTIZE.eval,
    count: int | None = QUANTIZE.count,
    out: str | Path | None = None,
    onnx: str | Path | None = None,
    pt2: str | Path | None = None,
    passes: Sequence[str] = QUANTIZE.passes,
    fit: str | None = IMAGES.fit,
    class_names: str | Path | None = IMAGES.class_names,
    set: Mapping[str, Any] | None = None,
    offline: bool = OFFLINE,
    runtime: RuntimeGiven = None,
    reporter: Reporter | None = None,
) -> Quantized:
    """Fit one student on unlabelled images of any source; score it where `eval` names labelled images.

    Without `images` they are made first. `zsq.request.defaults` chooses what is None for the teacher and the
    bits; it is said with the time it takes. The images are kept in a folder beside the student, and a later
    call for the same ones finds and verifies them.

    Args:
        bits: of weights and activations, as in `W4A4`. Several: the result is the first's, with `others`;
            each is written below `out` in a folder called after its bits.
        method, effort: of the images to make.
        widths: of single rows of the student's table, before all other rules: row -> bits (32 for float), or
            a CSV file with the header `row,bits`.
        count: use so many of `images`, or make so many.
        passes: analytic passes around the fit, in order, such as `["fold", "equalize", "correct-bias"]`.
        out: write the student there for `load_student`: NAME.safetensors, or a folder. None: nowhere; where
            images are made, the first free `outputs/TEACHER-BITS`.
        onnx: write a W8A8 or W4A8 student there as an ONNX file; `eval` then gives its `onnx_accuracy` too.
        pt2: write a W8A8 or W4A8 student there for converters, as `export_pt2`.
        fit: how photos of another size are brought to the teacher's: `crop`, `stretch` or `refuse`; None: as
            its own preprocessing does.
        class_names: where class folders are named otherwise than the teacher's classes: a file with their
            names in order, one a line, or `by-order`.
        offline: as in `generate`.

    Raises:
        ZsqError: one class per cause, see `zsq.core.errors`.

    Example:
        >>> train, test = "embedded:digits:train", "embedded:digits:test"
        >>> result = zsq.quantize("embedded:digits", train, "ptq", "W8A8", count=64, eval=test)
        >>> result.metrics["accuracy"] > 98
        True
        >>> result.cost.summary()
        '2,310,624 multiply-adds, ... weight bytes (float 186,048)'
        >>> made = zsq.quantize("embedded:digits", bits="W8A8", method="noise", count=32)
        >>> [str(path) for path in made.files]
        ['outputs/embedded-digits-W8A8/student.safetensors', 'outputs/embedded-digits-W8A8/student.json']
    """
    first, *more = several("" if bits is None else bits) or ("",)
    if not first:
        raise OptionError("no bits", "those of weights and activations, as in W4A4")
    check_read(images_given(fit, class_names), "--images and --eval", images, eval)
    values = {
        "teacher": teacher_of(teacher),
        "images": text_of(images),
        "student": student,
        "bits": first,
        "more_bits": tuple(more),
        "method": method,
        "effort": effort,
        "weights": text_of(weights),
        "first_last": first_last,
        "widths": widths_given(widths),
        "seed": seed,
        "eval": text_of(eval),
        "count": count,
        "passes": several(passes),
        **images_given(fit, class_names),
        "set": set or {},
        "offline": offline,
        "runtime": runtime_given(runtime),
    }
    return fulfil(
        validated(RequestConfig, values, "quantize"),
        Places(
            None if out is None else output_path(out),
            None if onnx is None else file_out(onnx, "--onnx"),
            None if pt2 is None else file_out(pt2, "--pt2"),
        ),
        reporter_or_silent(reporter),
    )
