"""How long until images are good enough: each tool stops at its first numbers whose three sets all are."""

import fidelity
import pytest

# Accuracy of (source, images, passes, set); real images reach 87, so 86.5 is good enough.
FOUND = {
    ("real", 256, 0): (87.1, 86.9, 87.0),
    ("varied", 64, 10): (86.6, 86.4, 87.0),
    ("varied", 64, 25): (86.5, 86.9, 86.6),
    ("model-compression-toolkit", 64, 10): (86.8, 86.7, 86.6),
}


@pytest.fixture
def measured(monkeypatch):
    """What is measured, in order."""
    calls = []

    def row(results, budget, python, source, images, passes, index):
        calls.append((source, images, passes, index))
        return {"accuracy": FOUND[source, images, passes][index]}

    monkeypatch.setattr(fidelity, "row", row)
    return calls


def test_a_tool_stops_where_all_sets_are_good_enough(measured):
    fidelity.run(mct="python")
    sets = range(3)
    assert measured == [
        *(("real", 256, 0, index) for index in sets),
        ("varied", 64, 10, 0),
        ("varied", 64, 10, 1),  # too far behind: its third set is not asked for
        *(("varied", 64, 25, index) for index in sets),
        *(("model-compression-toolkit", 64, 10, index) for index in sets),
    ]


def test_without_the_tool_only_ours_is_measured(measured):
    fidelity.run(mct=None)
    assert {source for source, *_ in measured} == {"real", "varied"}
