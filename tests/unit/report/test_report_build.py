import json
import re
from html.parser import HTMLParser

import pytest

from zsq.core.errors import StorageError
from zsq.measure.gap import gaps_from_rows
from zsq.report.build import build_report, explanation, html, markdown


class Page(HTMLParser):
    """Collects what a test asks of a page: tags with attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def text(make_data):
    """The page, drawn once for all tests that look at it."""
    return html(make_data())


def refuse_constant(name):
    raise AssertionError(name)


def test_report_json_has_the_agreed_keys_and_no_nan(make_data, tmp_path):
    page = build_report(make_data(), tmp_path / "report")
    assert page == tmp_path / "report" / "report.html" and page.is_file()
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json", "report.md"]
    report = json.loads((page.parent / "report.json").read_text(), parse_constant=refuse_constant)
    assert set(report) >= {"teacher", "settings", "rows", "gaps"}
    assert report["teacher"]["accuracy"] == 88.16 and report["settings"]["method"] == {"lr": 0.1}
    row = report["rows"][0]
    assert list(row) == [
        *("source", "student", "bits", "num_images", "metric", "mean", "ci95", "runs", "seconds"),
    ]
    assert (row["source"], row["mean"], len(row["ci95"])) == ("real", 87.0, 2)
    assert row["runs"] == [{"shard_set": k, "seed": 0, "value": 86.75 + k / 4} for k in range(3)]
    gap = next(g for g in report["gaps"] if g["source"] == "dsg" and g["metric"] == "accuracy")
    assert (gap["student"], gap["bits"], gap["num_images"], gap["gap"]) == ("lsq-kd", "W4A4", 256, 1.0)
    assert gap["recovery"] == pytest.approx(76 / 77) and len(gap["ci95"]) == len(gap["bootstrap95"]) == 2
    assert report["bn_distance"]["sources"]["dsg"] == [0.3, None]


def test_one_set_gives_null_and_says_so(make_data, text, tmp_path):
    data = make_data(sets=1)
    page = build_report(data, tmp_path)
    report = json.loads((page.parent / "report.json").read_text())
    assert all(row["ci95"] is None for row in report["rows"])
    assert all(g["ci95"] is None and g["recovery"] is None for g in report["gaps"])
    assert "no interval" in " ".join(explanation(data))
    assert "over the seeds of the students" in " ".join(explanation(make_data(sets=1, seeds=2)))
    assert "Both intervals" not in page.read_text() and "Both intervals" in text
    assert "3 shard sets of 256 images" in " ".join(explanation(make_data()))


def test_the_page_fetches_nothing(text):
    page = Page(text)
    assert not page.all("script") and not page.all("iframe")
    for _, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "srcset", "action"):
            assert attributes.get(key, "data:").startswith(("data:", "#"))
    styles = " ".join(re.findall(r"<style.*?</style>", text, re.DOTALL))
    assert "@import" not in styles and "url(" not in styles


def test_every_form_opens_with_the_verdict(make_data, text):
    data = make_data()
    wanted = "Over 2 pairs of student and bit width, images of dsg cost 0.0 to 1.0 points of accuracy"
    assert data.verdict.startswith(wanted) and data.as_json()["verdict"] == data.verdict
    assert markdown(data).splitlines()[2] == data.verdict
    texts = Page(text).texts
    assert texts.index(data.verdict) < texts.index("teacher")


def test_the_gap_table_comes_first_and_every_picture_has_words(text):
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert names.index("table") < names.index("svg") < names.index("img")
    assert all(image["alt"] for image in page.all("img"))
    described = [div for div in page.all("div") if div.get("role") == "img"]
    assert len(described) == len(page.all("svg")) == 3 and all(div["aria-label"] for div in described)


def test_ids_are_unique_over_all_figures(text):
    ids = [attributes["id"] for _, attributes in Page(text).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_names_from_outside_are_text(make_data):
    evil = "<script>alert(1)</script>|x"
    text = html(make_data(synthetic=evil, title=evil, settings={"note": evil}))
    assert "<script" not in text and evil in Page(text).texts
    lines = markdown(make_data(synthetic=evil)).splitlines()
    table = [line for line in lines if line.startswith("| lsq-kd | W4A4")]
    assert len({re.sub(r"\\\|", "", line).count("|") for line in table[:3]}) == 1


def test_real_images_need_permission(make_data, text):
    def sheets(text):
        return [image["alt"] for image in Page(text).all("img")]

    assert [alt.split()[-1] for alt in sheets(text)] == ["dsg", "noise"]
    assert [alt.split()[-1] for alt in sheets(html(make_data(show_real=True)))] == ["dsg", "noise", "real"]


def test_markdown_holds_the_same_numbers(make_data):
    lines = [line for line in markdown(make_data()).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:5] == ["student", "bits", "source", "accuracy", "95 %"]
    dsg = next(row for row in cells if row[:3] == ["lsq-kd", "W4A4", "dsg"])
    assert dsg[3] == "86.00" and dsg[5] == "1.00" and dsg[7:9] == ["99 %", "90.00"]
    assert dsg[9:] == ["256", "3 \u00d7 1", "41.0"]


def test_parts_without_data_are_left_out(make_data):
    rows = [row for row in make_data().rows if row.source != "real"]
    data = make_data(
        rows=rows,
        gaps=gaps_from_rows(rows),
        layer_names=(),
        bn_distance={},
        cost={},
        sheets={},
        quantized_tensors={},
    )
    page = Page(html(data))
    assert not page.all("svg") and not page.all("img") and "Quantized" not in " ".join(page.texts)
    assert "BN distance" not in markdown(data)
    nothing = make_data(rows=[], gaps=[], layer_names=(), bn_distance={}, teacher={"accuracy": None})
    assert "not measured" in html(nothing)


def test_a_teacher_without_batch_norm_still_has_figures_of_its_sets(make_data):
    data = make_data(layer_names=(), bn_distance={}, intra_class_distance={"real": 0.5, "dsg": float("nan")})
    text = markdown(data)
    assert "| real | \u2013 | \u2013 | 0.500 |" in text and "| dsg | 250 | \u2013 | \u2013 |" in text
    assert "What the sets are like" in html(data) and "BN distance per layer" not in text


def test_what_attention_says_of_each_source_has_columns_of_its_own(make_data):
    said = {"real": {"patch_entropy": 1.5, "head_similarity": float("nan")}}
    data = make_data(layer_names=(), bn_distance={}, intra_class_distance={}, attention=said)
    text = markdown(data)
    assert "| BN distance | patch entropy | head similarity | intra-class distance |" in text
    assert "| real | \u2013 | \u2013 | 1.500 | \u2013 | \u2013 |" in text
    assert data.as_json()["attention"] == {"real": {"patch_entropy": 1.5, "head_similarity": None}}
    assert "attention" not in make_data().as_json()


def test_a_new_report_replaces_the_old(make_data, tmp_path):
    nothing = {"rows": [], "gaps": [], "layer_names": (), "bn_distance": {}}
    build_report(make_data(title="first", **nothing), tmp_path)
    build_report(make_data(title="second", **nothing), tmp_path)
    assert "second" in (tmp_path / "report.html").read_text()
    assert len(list(tmp_path.iterdir())) == 3


def test_equal_data_gives_equal_files(make_data, tmp_path):
    first, second = (build_report(make_data(), tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_folder_that_cannot_be_is_one_line(make_data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*report\.json"):
        build_report(make_data(), tmp_path / "file")
