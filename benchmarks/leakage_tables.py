"""What sets reveal beside how useful they are, of a recipe with an audit."""

from __future__ import annotations

from typing import Any

from common import Results
from pydantic import TypeAdapter
from student_tables import of_first_metric

from zsq.measure.audits import SPACES, Audit
from zsq.report.leakage import membership
from zsq.report.tables import DASH, Grid, number, ordered_sources

AUDIT = TypeAdapter(Audit)


def audits_of(table: dict[str, Any]) -> dict[str, Audit]:
    """Source -> its audit, of a kept table; empty where there was none."""
    return {source: AUDIT.validate_python(kept) for source, kept in table.get("leakage", {}).items()}


def leakage_table(name: str) -> Grid:
    """One line per source: the first metric of each student, membership in both spaces, suspects."""
    table = Results(name).read()
    rows = of_first_metric(table, "rows")
    students = list(dict.fromkeys((row["student"], row["bits"]) for row in rows))
    found = {(row["source"], row["student"], row["bits"]): number(row["mean"]) for row in rows}
    audits = audits_of(table)
    lines = tuple(
        (
            source,
            *(found.get((source, *student), DASH) for student in students),
            *(membership(audits[source].spaces[space]) for space in SPACES),
            f"{len(audits[source].named)} of {audits[source].num_synthetic}",
        )
        for source in ordered_sources(audits)
    )
    header = ("source", *(f"`{student}` {bits}" for student, bits in students))
    return Grid((*header, *(f"membership in {space}" for space in SPACES), "suspects"), lines, 1)
