"""The sentence that opens a report, for each shape that data can have."""

import dataclasses

import pytest

from zsq.measure.gap import Gap, Row, Run
from zsq.report.verdict import verdict


def made(gaps, metric="accuracy", real=True):
    """Rows and gaps of (source, gap, interval, student, bits)."""
    rows = [Row("real", "kd", "W4A4", 256, metric, 87.0, None, (Run(0, 0, 87.0),), 1.0)] if real else []
    found = [
        Gap(source, student, bits, 256, metric, value, bounds, None, None)
        for source, value, bounds, student, bits in gaps
    ]
    rows += [Row(g.source, g.student, g.bits, 256, metric, 87 - g.gap, None, (), 1.0) for g in found]
    return rows, found


def one(source, value, bounds=None, student="kd", bits="W4A4"):
    return (source, value, bounds, student, bits)


@pytest.mark.parametrize(
    "gaps, wanted",
    [
        (
            [one("dgh", 1.26, (0.5, 2.0)), one("noise", 42.4, (40.0, 44.0))],
            "At W4A4 with kd, images of dgh cost 1.3 points of accuracy against as many real images "
            "(95 % interval 0.5 to 2.0); noise costs 42.4.",
        ),
        (
            [one("dgh", 0.1, (-0.8, 0.9))],
            "At W4A4 with kd, images of dgh cost 0.1 points of accuracy against as many real images "
            "(95 % interval \u22120.8 to 0.9: no difference is shown).",
        ),
        (
            [one("dgh", 1.0), one("noise", 42.4)],
            "At W4A4 with kd, images of dgh cost 1.0 points of accuracy against as many real images "
            "(no interval: one set of images); noise costs 42.4.",
        ),
        (
            [one("dgh", -0.5, (-0.9, -0.1)), one("noise", -0.25, (-1.0, 0.5))],
            "At W4A4 with kd, images of dgh gain 0.5 points of accuracy over as many real images "
            "(95 % interval 0.1 to 0.9); noise gains 0.2.",
        ),
        (
            [one("noise", 3.0, (2.0, 4.0))],
            "At W4A4 with kd, noise costs 3.0 points of accuracy against as many real images "
            "(95 % interval 2.0 to 4.0).",
        ),
        (
            [one("dsg", 2.0, (1.0, 3.0)), one("dgh", 1.0, (0.0, 2.0)), one("gdfq", 5.0, (4.0, 6.0))],
            "At W4A4 with kd, images of dgh, the best of 3 sources, cost 1.0 points of accuracy against as "
            "many real images (95 % interval 0.0 to 2.0: no difference is shown).",
        ),
        (
            [one("dgh", 0.03, (0.01, 0.04))],
            "At W4A4 with kd, images of dgh cost 0.03 points of accuracy against as many real images "
            "(95 % interval 0.01 to 0.04).",
        ),
    ],
)
def test_one_student_and_width(gaps, wanted):
    assert verdict(*made(gaps)) == wanted


def test_several_widths_give_a_range_and_the_interval_of_the_largest():
    gaps = [
        one("dgh", -0.2, (-0.5, 0.1), bits="W8A8"),
        one("dgh", 3.24, (1.1, 5.3), bits="W2A4"),
        one("noise", 0.4, (0.3, 0.5), bits="W8A8"),
        one("noise", 42.4, (40.0, 44.0), bits="W2A4"),
    ]
    assert verdict(*made(gaps)) == (
        "Over 2 pairs of student and bit width, images of dgh cost \u22120.2 to 3.2 points of accuracy "
        "against as many real images, most with kd at W2A4 (95 % interval 1.1 to 5.3); noise "
        "costs 0.4 to 42.4."
    )
    gains = [one("dgh", -0.2, bits="W8A8"), one("dgh", -0.6, bits="W2A4")]
    assert "gain 0.2 to 0.6 points of accuracy over as many real images, least with kd at W8A8" in verdict(
        *made(gains)
    )


def test_the_number_of_real_images_is_told_where_it_is_another():
    rows, gaps = made([one("dgh", 1.0), one("noise", 42.4)])
    more = [dataclasses.replace(gap, num_images=1024) for gap in gaps]
    assert "cost 1.0 points of accuracy against 256 real images (" in verdict(rows, more)


def test_what_is_written_as_zero_is_no_gain():
    told = verdict(*made([one("dgh", 1.0), one("noise", 0.0)]))
    assert told.endswith("noise costs 0.0.")


def test_a_narrow_range_is_still_told():
    gaps = [
        one("dgh", 0.0, bits="W8A8"),
        one("dgh", 0.02),
        one("noise", 0.4, bits="W8A8"),
        one("noise", 0.41),
    ]
    told = verdict(*made(gaps))
    assert "cost 0.0 to 0.02 points" in told and told.endswith("noise costs 0.4.")


def test_a_source_measured_at_fewer_settings_is_not_the_best():
    gaps = [one("dgh", 3.0), one("dgh", 2.0, bits="W2A4"), one("zeroq", 0.1)]
    assert "images of dgh, the best of 2 sources, cost 2.0 to 3.0" in verdict(*made(gaps))


def test_the_first_metric_alone_is_told():
    rows, gaps = made([one("dgh", 1.1, (0.2, 2.1))], metric="cosine")
    _, others = made([one("zeroq", -9.0)], metric="eer")
    assert "images of dgh cost 1.1 points of cosine to the teacher against" in verdict(rows, [*gaps, *others])


def test_what_is_missing_is_said():
    assert verdict([], []) == "Nothing is measured yet."
    assert "No student is fitted on real images" in verdict(*made([one("dgh", 1.0)], real=False))
    assert "Only real images are measured" in verdict(*made([]))
