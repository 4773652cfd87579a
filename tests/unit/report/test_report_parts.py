import base64
import io
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from zsq.datasetcard.sheets import contact_sheet, png_data_uri
from zsq.measure.gap import Gap, Row, Run
from zsq.report.build import html, markdown
from zsq.report.data import ReportData, finite
from zsq.report.plots import cost_figure, distance_figure, gap_figure, roc_figure
from zsq.report.svg import INK, legend_columns, looks
from zsq.report.tables import DASH, MINUS, entries, gap_table, interval, number, ordered_sources, plus_minus


def row(source, mean, half=None, student="lsq-kd", bits="W4A4"):
    bounds = None if half is None else (mean - half, mean + half)
    return Row(source, student, bits, 256, "accuracy", mean, bounds, (Run(0, 0, mean),), 1.0)


def gap(source, value, half=None, student="lsq-kd", bits="W4A4", recovery=None):
    bounds = None if half is None else (value - half, value + half)
    return Gap(source, student, bits, 256, "accuracy", value, bounds, bounds, recovery)


def texts(svg):
    root = ET.fromstring(svg)
    return ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]


def test_many_sources_look_different_and_their_names_have_room():
    sources = [f"method-{number}" for number in range(34)]
    assert len(set(looks([*sources, "real", "noise"]).values())) == 36
    assert legend_columns(["a", "b"], 6) == 6 and legend_columns(["leaves with 16 copies"], 4) == 3


@pytest.mark.parametrize(("metric", "ends"), [("accuracy", ("points", "%")), ("psnr", ("dB", "dB"))])
def test_axes_say_the_unit_of_the_metric(metric, ends):
    table = [
        replace(each, main=replace(each.main, metric=metric))
        for each in entries([row("real", 40.0), row("a", 38.0)], [gap("a", 2.0)])
    ]
    assert f"{metric}: real images minus source, {ends[0]}" in texts(gap_figure(table))
    assert f"{metric}, {ends[1]}" in texts(cost_figure(table, {"a": 9.0}, None))


def test_numbers_are_written_alike_everywhere():
    assert number(-0.126) == f"{MINUS}0.13" and number(-0.001) == "0.00" and number(None) == DASH
    assert number(87.456, 0) == "87"
    assert interval((-0.5, 1.25)) == f"[{MINUS}0.50, 1.25]" and interval(None) == DASH
    assert plus_minus(86.0, (85.75, 86.25)) == "86.00 \u00b1 0.25" and plus_minus(86.0, None) == "86.00"
    assert plus_minus(87.0, (71.8, 100.0)) == "87.00 [71.8, 100.0]"


def test_real_comes_first_and_noise_last():
    assert ordered_sources(["noise", "b", "real", "a", "b"]) == ["real", "b", "a", "noise"]
    rows = [row("noise", 1.0), row("b", 2.0), row("b", 2.0, bits="W2A4"), row("real", 3.0)]
    order = [(e.main.bits, e.main.source) for e in entries(rows, [])]
    assert order == [("W4A4", "real"), ("W4A4", "b"), ("W4A4", "noise"), ("W2A4", "b")]


def test_the_terminal_table_fits_80_columns(make_data):
    data = make_data(synthetic="deepinversion")
    console = Console(width=80, file=io.StringIO())
    console.print(gap_table(data.rows, data.gaps))
    output = console.file.getvalue()
    lines = [line.split() for line in output.splitlines()]
    assert lines[0] == ["student", "bits", "source", "n", "accuracy", "gap", "recovery", "agreement"]
    half = 4.302652729911275 * 0.25 / math.sqrt(3)
    assert lines[1][:3] == ["lsq-kd", "W4A4", "real"] and lines[5][:3] == ["ptq", "W8A8", "real"]
    deep = ["deepinversion", "256", "86.00", "\u00b1", f"{half:.2f}", "1.00", "\u00b1"]
    assert lines[2][:7] == deep and lines[2][8:] == ["99", "%", "90.00"]
    assert "\u2026" not in output and len(lines) == 8


def test_long_names_are_whole_in_the_terminal_table():
    rows = [row("real", 99.5, student="quantface+fold+equalize"), row("deepinversion", 99.0, 0.3)]
    rows = [replace(each, student="quantface+fold+equalize", ci95=(90.0, 100.0)) for each in rows]
    console = Console(width=80, file=io.StringIO())
    console.print(gap_table(rows, []))
    output = console.file.getvalue()
    assert "\u2026" not in output
    words = output.split()
    assert all(words.count(word) == 1 for word in ("quantface", "+fold", "+equalize"))
    assert words.count("deepinversion") == 1


def test_an_empty_table_is_a_table():
    console = Console(width=80, file=io.StringIO())
    console.print(gap_table([], []))
    assert "accuracy" in console.file.getvalue()


def test_gap_bars_have_the_length_of_the_gap():
    rows = [row("real", 87.0), row("a", 86.0), row("b", 83.0)]
    svg = gap_figure(entries(rows, [gap("a", 1.0), gap("b", 4.0)]))
    colour = looks(["a", "b"])
    widths = {}
    for node in ET.fromstring(svg).iter():
        for source in ("a", "b"):
            if node.tag.endswith("path") and f"fill: {colour[source][0]}" in node.get("style", ""):
                xs = [
                    float(v) for v in node.get("d").replace("L", "M").split("M")[1:] for v in [v.split()[0]]
                ]
                widths[source] = max(xs) - min(xs)
    assert widths["b"] == pytest.approx(4 * widths["a"], rel=1e-3)
    assert {"1.00", "4.00", "lsq-kd W4A4"} <= set(texts(svg))


def test_noise_that_dwarfs_the_rest_is_cut_and_says_so():
    rows = [row("real", 87.0), row("a", 86.0), row("noise", 10.0)]
    table = entries(rows, [gap("a", 1.0, 0.3), gap("noise", 77.0, 0.3)])
    assert any("77.00 (bar cut)" in text for text in texts(gap_figure(table)))
    assert any("noise 10.00, below" in text for text in texts(cost_figure(table, {"a": 9, "noise": 0}, 88.0)))
    near = entries(
        [row("real", 87.0), row("a", 86.0), row("noise", 85.0)], [gap("noise", 2.0), gap("a", 1.0)]
    )
    assert not any("cut" in text for text in texts(gap_figure(near)))


def ticks(svg):
    """Numbers that stand alone in a figure: those of axes, and the gaps beside bars."""
    words = [text.replace(MINUS, "-") for text in texts(svg)]
    return [float(word) for word in words if word.replace(".", "").replace("-", "").isdigit()]


def test_axes_end_at_0_and_100():
    cost = {"a": 250.0, "b": 9.0}
    table = entries([row("real", 99.9), row("a", 0.1), row("b", 0.2)], [gap("a", 99.8), gap("b", 99.7)])
    assert {0, 100} <= set(ticks(gap_figure(table))) and max(ticks(gap_figure(table))) == 100
    # Costs are on an axis of their own, up to 250.
    shares = [value for value in ticks(cost_figure(table, cost, 100.0)) if value not in range(120, 300)]
    assert {0, 100} <= set(shares) and all(0 <= value <= 100 for value in shares)
    curve = {"kd W4A4": {"real": [0.0] * 12 + [100.0] * 13}}
    drawn = roc_figure(curve)
    assert max(ticks(drawn)) == 100 and min(ticks(drawn)) == 0
    assert {"0.0001", "0.01", "1"} <= set(texts(drawn)) and "$" not in "".join(texts(drawn))


@pytest.mark.parametrize("cost", [{"a": 250.0, "b": 250.0}, {"a": 20.0, "b": 20000.0}, {"a": 0.0}])
def test_cost_figures_of_any_range_are_drawn(cost):
    table = entries([row("real", 87.0, 0.2), row("a", 86.0, 0.1), row("b", 86.1)], [])
    found = texts(cost_figure(table, cost, None))
    assert "teacher passes per image" in found and "real" in found and "teacher" not in found


def test_one_method_at_several_costs_is_one_curve():
    labels = {"a-100": "a", "a-250": "a", "b": "b", "b-tight": "b"}
    settings = {"sources": [{"name": name, "method": method} for name, method in labels.items()]}
    cost = {"a-100": 100.0, "a-250": 250.0, "b": 250.0, "b-tight": 250.0}
    table = entries([row("real", 87.0), *(row(name, 80.0 + i) for i, name in enumerate(cost))], [])
    data = ReportData(title="", teacher={}, settings=settings, rows=(), gaps=(), cost=cost)
    assert data.curves == {"a-100": "a", "a-250": "a"}
    found = texts(cost_figure(table, cost, None, data.curves))
    assert {"a", "b", "b-tight"} <= set(found) and "a-100" not in found


def test_distance_figures_name_few_layers_and_number_many():
    few = texts(distance_figure(["bn1", "bn2"], {"noise": [3.0, float("nan")], "a": [0.2, 0.0]}))
    assert {"bn1", "bn2", "noise", "a"} <= set(few)
    many = texts(distance_figure([f"layer{i}" for i in range(60)], {"a": [0.1] * 60}))
    assert not any(text.startswith("layer") for text in many)
    assert "$" not in "".join(few + many)


def test_figures_follow_the_colour_of_the_page():
    svg = distance_figure(["bn1"], {"real": [1.0]})
    assert INK not in svg and "currentColor" in svg
    root = ET.fromstring(svg)
    assert root.get("viewBox") and root.get("width") is None and root.get("height") is None


def test_small_images_are_enlarged_exactly():
    pixels = torch.arange(3 * 2 * 16 * 16).reshape(2, 3, 16, 16).remainder(256).byte()
    sheet = contact_sheet(pixels).numpy()
    assert sheet.shape == (3, 68, 134)
    np.testing.assert_array_equal(sheet[:, 2:66, 2:66][:, ::4, ::4], pixels[0].numpy())
    np.testing.assert_array_equal(sheet[:, 2:66, 68:132][:, 3::4, 1::4], pixels[1].numpy())


def test_large_images_are_reduced_and_sheets_are_limited():
    sheet = contact_sheet(torch.full((40, 1, 224, 224), 77, dtype=torch.uint8))
    assert sheet.shape == (3, 4 * 130 + 2, 8 * 130 + 2)
    assert set(sheet.unique().tolist()) == {77, 128}
    assert contact_sheet(torch.zeros(9, 4, 100, 100, dtype=torch.uint8)).shape == (3, 206, 818)


def test_png_uri_gives_the_pixels_back():
    sheet = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    uri = png_data_uri(sheet)
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(image), sheet.permute(1, 2, 0).numpy())


def test_nothing_infinite_reaches_json():
    dirty = {"a": [1.0, float("nan")], "b": {"c": (float("inf"), 2)}, 3: "x"}
    assert finite(dirty) == {"a": [1.0, None], "b": {"c": [None, 2]}, "3": "x"}


def test_what_images_choose_is_said_and_where_it_is_always_the_same(make_data):
    varied = {"entropies": {"layer1": 0.5, "layer2": 1.5}, "bit_operations": 2.5e6}
    same = {"entropies": {"layer1": 0.0, "layer2": 0.001}, "bit_operations": 3e6}
    choices = {"dqnet W3A3": {"noise": same, "real": varied}}
    text = markdown(make_data(choices=choices))
    assert "dqnet W3A3 fitted on noise: always the same choice of bits, its controller has failed." in text
    table = text[text.index("## Bits that images choose: dqnet W3A3") :].split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == ["layer", "noise", "real"] or cells[0] == ["layer", "real", "noise"]
    of = {line[0]: dict(zip(cells[0], line, strict=True)) for line in cells}
    assert (of["layer2"]["real"], of["mean of layers"]["real"]) == ("1.50", "1.00")
    assert of["million bit operations"] == {
        "layer": "million bit operations", "real": "2.50", "noise": "3.00"
    }  # fmt: skip
    assert (of[""]["noise"], of[""]["real"]) == ("always the same choice", "")
    page = html(make_data(choices=choices))
    assert "Bits that images choose: dqnet W3A3" in page and "its controller has failed" in page
    assert "controller" not in markdown(make_data(choices={"dqnet W3A3": {"real": varied}}))
    assert make_data(choices=choices).as_json()["choices"] == choices
    assert "choices" not in make_data().as_json()
