"""What a report is made of, and the same as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from zsq.contract import QuantizedTensor
from zsq.measure.audits import Audit, audit_json
from zsq.measure.contrasts import Contrast
from zsq.measure.gap import Gap, Row
from zsq.measure.layernoise import StudentNoise
from zsq.measure.protocol import NOISE, REAL, Choices
from zsq.report.verdict import verdict


@dataclass(frozen=True)
class ReportData:
    """All that a report shows.

    Attributes:
        teacher: name, weights_sha256, accuracy (points or None), num_outputs, and what else is worth a line.
        settings: the resolved configuration.
        layer_names: of the BN layers, in the order of `bn_distance`.
        bn_distance: source -> distance of its images to the teacher's BN statistics, per layer.
        attention: source -> what the teacher's attention says of its images, by name; of one without BN.
        intra_class_distance: source -> mean cosine distance between the features of two images of a class.
        cost: source -> teacher passes per image spent on making it.
        sheets: source -> uint8 (N, C, H, W) images to show.
        quantized_tensors: "student bits" -> the tensors it quantizes.
        layers: "student bits" -> source -> which layers of the student hurt when it is fitted on it.
        contrasts: of an embedder, each source against real images and noise.
        roc: of an embedder, "student bits" -> source -> TAR in points at `zsq.tasks.verification.ROC_FARS`.
        choices: "student bits" -> source -> what images choose of a student that gives each its own bits.
        leakage: source -> what its first set reveals of the owner's images, where those are known.
        show_real: whether the owner allows real images in the report; without it they are left out.
    """

    title: str
    teacher: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    gaps: Sequence[Gap]
    layer_names: Sequence[str] = ()
    bn_distance: Mapping[str, Sequence[float]] = field(default_factory=dict)
    attention: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    intra_class_distance: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    sheets: Mapping[str, Tensor] = field(default_factory=dict)
    quantized_tensors: Mapping[str, Sequence[QuantizedTensor]] = field(default_factory=dict)
    layers: Mapping[str, Mapping[str, StudentNoise]] = field(default_factory=dict)
    contrasts: Sequence[Contrast] = ()
    roc: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    choices: Mapping[str, Mapping[str, Choices]] = field(default_factory=dict)
    leakage: Mapping[str, Audit] = field(default_factory=dict)
    show_real: bool = False

    @property
    def embeds(self) -> bool:
        """Whether the teacher gives embeddings."""
        return self.teacher.get("task") == "embed"

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        return verdict(self.rows, self.gaps)

    @property
    def curves(self) -> dict[str, str]:
        """source -> its method, of methods that a recipe runs at several costs, each once."""
        costs: dict[str, dict[str, float]] = {}
        for source in self.settings.get("sources", ()):
            label = source["name"] or source["method"]
            if label in self.cost:
                costs.setdefault(source["method"], {})[label] = self.cost[label]
        return {
            label: method
            for method, of in costs.items()
            if 1 < len(of) == len(set(of.values()))
            for label in of
        }

    @property
    def shown_sheets(self) -> dict[str, Tensor]:
        """The sheets that may be shown: synthetic ones, then noise, then real ones where allowed."""
        allowed = [source for source in self.sheets if source != REAL or self.show_real]
        last = {NOISE: 1, REAL: 2}
        return {source: self.sheets[source] for source in sorted(allowed, key=lambda s: last.get(s, 0))}

    def as_json(self) -> dict[str, Any]:
        """The content of `report.json`: no pictures, null in place of NaN and infinity."""
        return finite(
            {
                "title": self.title,
                "verdict": self.verdict,
                "teacher": dict(self.teacher),
                "settings": dict(self.settings),
                "rows": [dataclasses.asdict(row) for row in self.rows],
                "gaps": [dataclasses.asdict(gap) for gap in self.gaps],
                "bn_distance": {"layers": list(self.layer_names), "sources": dict(self.bn_distance)},
                **({"attention": dict(self.attention)} if self.attention else {}),
                "intra_class_distance": dict(self.intra_class_distance),
                "cost": dict(self.cost),
                "quantized_tensors": {
                    student: [dataclasses.asdict(tensor) for tensor in tensors]
                    for student, tensors in self.quantized_tensors.items()
                },
                **({"layers": self._layers_json()} if self.layers else {}),
                **({"contrasts": [dataclasses.asdict(c) for c in self.contrasts]} if self.contrasts else {}),
                **({"choices": dict(self.choices)} if self.choices else {}),
                **({"leakage": self._leakage_json()} if self.leakage else {}),
                **({"roc": {student: dict(tars) for student, tars in self.roc.items()}} if self.roc else {}),
            }
        )

    def _leakage_json(self) -> dict[str, Any]:
        return {source: audit_json(audit) for source, audit in self.leakage.items()}

    def _layers_json(self) -> dict[str, dict[str, Any]]:
        return {
            student: {source: dataclasses.asdict(noise) for source, noise in sources.items()}
            for student, sources in self.layers.items()
        }


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity inside it replaced by None."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
