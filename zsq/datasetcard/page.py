"""The text of a dataset card: Markdown with the header that Hugging Face reads.

A manifest may come from anywhere: every text of it is cut, freed of characters that cannot be seen, and put
between backticks, where Markdown and HTML have no meaning; in the header it is a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zsq.core.wording import printable
from zsq.datasetcard.audited import AuditFigures
from zsq.shards.manifest import Manifest

MOST_SHOWN = 200  # characters of one text
# Names of Hugging Face; some tasks have none.
CATEGORIES = {
    "classify": "image-classification",
    "embed": "image-feature-extraction",
    "image": "image-to-image",
    "segment": "image-segmentation",
    "detect": "object-detection",
}
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
LARGEST = "n>1M"


@dataclass(frozen=True)
class Files:
    """How the images lie beside the card: lines that say it, lines of Python that read them, and the pattern
    of their names where Hugging Face's loader of image folders takes them."""

    said: Sequence[str]
    code: Sequence[str]
    pattern: str | None = None


RUN_FILES = Files(
    ("HDF5 shards in `shards/`; `manifest.json` states the hash of each, and `zsq verify` checks them.",),
    ("import zsq", "images = zsq.ShardDataset('.').pixels()  # uint8 (N, C, H, W)"),
)


def page(
    manifest: Manifest,
    shape: tuple[int, ...],
    num_labelled: int,
    audit: AuditFigures | None,
    files: Files,
    sheet: str,
) -> str:
    """The whole card; equal facts give equal bytes.

    Args:
        shape: of an image. num_labelled: images with a label.
        sheet: name of the picture of the first images, beside the card.
    """
    parts = [
        _header(manifest, files),
        f"# {_title(manifest, code)}\n\n{_opening(manifest)}\n\n![the first images]({sheet})",
        "## How it was made\n\n" + _items(_facts(manifest, shape)),
        "## What was read\n\n" + _read(manifest),
        "## Audit\n\n" + _audit(audit),
        "## What it is for\n\n" + _uses(manifest, num_labelled),
        "## Files\n\n"
        + "\n".join((*(f"- {line}" for line in files.said), "", "```python", *files.code, "```")),
    ]
    return "\n\n".join(parts) + "\n"


def plain(value: Any) -> str:
    """One short line of printable characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    cut = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
    return printable(cut, besides="")


def code(value: Any) -> str:
    """`plain` between backticks, where Markdown and HTML have no meaning."""
    return f"`{plain(value).replace('`', chr(39)).strip() or '-'}`"


def _header(manifest: Manifest, files: Files) -> str:
    size = next((name for most, name in SIZES if manifest.num_images < most), LARGEST)
    category = CATEGORIES.get(manifest.teacher.task) if manifest.teacher is not None else None
    lines = [f"pretty_name: {json.dumps(_title(manifest, plain), ensure_ascii=False)}"]
    lines += ["task_categories:", f"- {category}"] if category else []
    lines += ["size_categories:", f"- {size}", "tags:", "- calibration", "- quantization", "- zsq"]
    if files.pattern is not None:
        lines += ["configs:", "- config_name: default", "  data_files:", "  - split: train"]
        lines.append(f"    path: {json.dumps(files.pattern)}")
    return "\n".join(("---", *lines, "---"))


def _title(manifest: Manifest, shown: Any) -> str:
    teacher = f" for {shown(manifest.teacher.name)}" if manifest.teacher is not None else ""
    return f"{manifest.num_images} images of {shown(manifest.method.name)}{teacher}"


def _opening(manifest: Manifest) -> str:
    if manifest.teacher is None:
        return "Images that another program made, in the format of zsq. How they were made is not known."
    alone = " alone" if manifest.data_read == "none" else ", and from what is stated below"
    return f"Calibration images for quantizing a trained network. zsq made them from its weights{alone}."


def _facts(manifest: Manifest, shape: tuple[int, ...]) -> dict[str, str]:
    """What one needs to make the set again, each as Markdown."""
    sides = "x".join(map(str, shape))
    facts = {"Images": f"{manifest.num_images} of {sides}", "Method": code(manifest.method.name)}
    if manifest.method.options:
        facts["Options"] = ", ".join(
            code(f"{key}={plain(value)}") for key, value in manifest.method.options.items()
        )
    facts["Seed"] = str(manifest.seed)
    if manifest.teacher is not None:
        facts["Network"] = f"{code(manifest.teacher.name)}, task {code(manifest.teacher.task)}"
        facts["SHA-256 of its weights"] = code(manifest.teacher.weights_sha256)
    facts["SHA-256 of the shards' hashes"] = code(manifest.shards_sha256)
    facts["Made with"] = ", ".join(
        code(f"{name} {plain(version)}")
        for name, version in (("zsq", manifest.zsq_version), *manifest.libraries.items())
    )
    facts["Device"] = code(manifest.device)
    return facts


def _items(facts: dict[str, str]) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())


def _read(manifest: Manifest) -> str:
    said = f"Of real images: {code(manifest.data_read)}."
    if manifest.teacher is None:
        return said
    if manifest.seal is not None:
        return f"{said} The run was sealed: `manifest.json` lists what it opened, and `zsq verify` prints it."
    return f"{said} The run was not sealed, so this is what the method states of itself."


def _audit(audit: AuditFigures | None) -> str:
    if audit is None:
        return "Not computed: nobody compared these images with those that the network was trained on."
    control = audit.control
    lines = [
        f"- {len(audit.named)} of {audit.num_synthetic} images may be copies of one of {audit.num_train} "
        f"training images; {audit.num_holdout} held-out images to compare with",
        f"- test of the audit: it found {control.named_exact} of {control.planted} planted copies, and "
        f"{control.named_altered} with noise added",
    ]
    for space, figures in audit.spaces.items():
        low, high = figures.membership_ci95
        lines.append(
            f"- membership AUC in {code(space)}: {figures.membership_auc:.1f} [{low:.1f}, {high:.1f}]; 50 is "
            "chance"
        )
    return "\n".join(lines)


def _uses(manifest: Manifest, num_labelled: int) -> str:
    labels = (
        f"{num_labelled} images have a label: the class that the method asked of the network, not what a "
        "person sees."
        if num_labelled and manifest.teacher is not None
        else f"{num_labelled or 'No'} images have a label."
    )
    return "\n".join(
        (
            "- For: calibrating and training a quantized copy of this network, and comparing quantizers.",
            "- Not for: training other networks, measuring accuracy, or saying what real images look like.",
            "- Not for: a network of other weights. Make a set for it.",
            f"- {labels}",
            "- No licence is stated here. That of the network may cover what is made from its weights.",
        )
    )
