"""What sets reveal beside how useful they are, of a recipe with an audit."""

from __future__ import annotations

from common import Results
from student_tables import of_first_metric

from zsq.measure.audits import SPACES, Space
from zsq.report.leakage import membership
from zsq.report.tables import DASH, Grid, number, ordered_sources


def leakage_table(name: str) -> Grid:
    """One line per source: the first metric of each student, membership in both spaces, suspects."""
    table = Results(name).read()
    rows = of_first_metric(table, "rows")
    students = list(dict.fromkeys((row["student"], row["bits"]) for row in rows))
    found = {(row["source"], row["student"], row["bits"]): number(row["mean"]) for row in rows}
    audits = table["leakage"]
    lines = tuple(
        (
            source,
            *(found.get((source, *student), DASH) for student in students),
            *(membership(Space(**audits[source]["spaces"][space])) for space in SPACES),
            f"{len(audits[source]['named'])} of {audits[source]['num_synthetic']}",
        )
        for source in ordered_sources(audits)
    )
    header = ("source", *(f"`{student}` {bits}" for student, bits in students))
    return Grid((*header, *(f"membership in {space}" for space in SPACES), "suspects"), lines, 1)
