"""The widths that quantizers may have: one rule for the command line, options and files."""

import re
from pathlib import Path

import pytest

import zsq
from zsq.config import validated
from zsq.core.errors import OptionError
from zsq.recipefile import Recipe
from zsq.saved.summary import student_lines
from zsq.widths import Bits, Widths, check_first_last, check_least, is_width, read_widths
from zsq.workflow import recipe_protocol


def test_widths():
    assert [bits for bits in range(-1, 40) if is_width(bits)] == [1, 2, 3, 4, 5, 6, 7, 8, 32]


@pytest.mark.parametrize("text", ["W4A4", " w2a8 ", "W32A32", "W8A32"])
def test_texts(text):
    assert str(Bits.parse(text)) == text.strip().upper()


@pytest.mark.parametrize("text", ["", "W4", "W0A4", "W4A9", "W-4A4", "W444A4", "W4A4A4"])
def test_texts_that_are_none(text):
    with pytest.raises(OptionError, match=re.escape("expected W1..W8 or W32 with A1..A8 or A32")):
        Bits.parse(text)


@pytest.mark.parametrize("bits", [-8, 0, 9, 31, 33])
def test_first_and_last_layer(bits):
    with pytest.raises(OptionError, match=r"expected 1\.\.8, or 32 for float"):
        check_first_last(bits)
    check_first_last(None)


def test_the_limit_stands_in_one_file():
    found = [
        path.name
        for path in Path(zsq.__file__).parent.rglob("*.py")
        if re.search(r"range\([12], 9\)|ge=[12], le=8|\[[12]-8\]", path.read_text())
    ]
    assert found == []


def test_rows_of_their_own_stand_before_all_other_rules():
    bits = Bits(4, 4).with_rows({"b.input": 32, "a.weight": 3})
    widths = Widths(bits, first_last=8)
    assert (str(bits), str(bits.uniform), bits.own[0]) == ("W4A4+2 rows", "W4A4", ("a.weight", 3))
    assert widths.of("a.weight", "weight", at_end=True) == 3
    assert widths.of("c.weight", "weight", at_end=True) == 8
    with pytest.raises(OptionError, match=r"'b.input', which is no row of this network; expected 'a.weight'"):
        widths.check_rows()
    assert widths.of("b.input", "activation", at_end=False) == 32
    widths.check_rows()


@pytest.mark.parametrize(
    ("bits", "first_last", "found"),
    [
        (Bits(1, 4), None, "W1A4"),
        (Bits(4, 4), 1, "first and last layer of 1 bit"),
        (Bits(4, 4).with_rows({"a.weight": 1}), None, "1 bits for row 'a.weight'"),
    ],
)
def test_a_student_says_the_least_it_takes(bits, first_last, found):
    with pytest.raises(OptionError, match=f"{found} with student ptq; expected at least W2A2"):
        check_least("ptq", Bits(2, 2), bits, first_last)
    check_least("binary", Bits(1, 1), bits, first_last)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with ''"),
        ("name,width\na,4", "begins with 'name,width'; expected a header row,bits"),
        ("row,bits\na.weight,9", "'a.weight,9'; expected a row and 1..8 or 32"),
        ("row,bits\na.weight", "'a.weight'; expected a row"),
        ("row,bits\na,4\na,4", "two lines for 'a'"),
        ('row,bits\n"a,4', "is not CSV"),
    ],
)
def test_files_that_are_no_widths(tmp_path, text, message):
    path = tmp_path / "widths.csv"
    path.write_text(text)
    with pytest.raises(OptionError, match=message):
        read_widths(path)


def test_a_student_with_widths_of_a_file(tmp_path, run_widths):
    """From the file to the table, the cost, the saved student and what is said of it."""
    found = run_widths("row,bits\nconv1.weight, 8\n\nlinear.input,32\n")
    table = {row.name: row.bits for row in found.fitted.tensors}
    assert table["conv1.weight"] == 8 and "linear.input" not in table and set(table.values()) == {4, 8}
    layers = {layer.name: layer for layer in found.cost.layers}
    assert (layers["conv1"].weight_bits, layers["linear"].activation_bits) == (8, 32)
    assert found.cost.mean_bits() == "W4.01 A4.07"
    loaded = zsq.load_student(tmp_path / "student")
    assert loaded.bits == found.fitted.bits and loaded.tensors == found.fitted.tensors
    assert any("2 rows with bits of their own" in line for line in student_lines(tmp_path / "student"))
    assert "W4A4+2 rows" in found.lines()[-1]


def test_a_row_that_is_not_there(run_widths):
    with pytest.raises(OptionError, match=r"bits for 'conv.weight', which is no row .* 'conv1.weight'"):
        run_widths("row,bits\nconv.weight,8\n")


@pytest.fixture
def run_widths(tmp_path):
    def run(text):
        (tmp_path / "widths.csv").write_text(text)
        return zsq.quantize(
            "embedded:digits", "embedded:digits:train", "ptq", "W4A4", count=32,
            widths=tmp_path / "widths.csv", out=tmp_path / "student",
        )  # fmt: skip

    return run


def test_widths_of_a_recipe(tmp_path):
    (tmp_path / "w.csv").write_text("row,bits\nconv1.weight,8\n")
    values = {
        "title": "t", "teacher": {"name": "embedded:digits"}, "generate": {"count": 8},
        "real": "embedded:digits:train", "eval": "embedded:digits:val",
        "sources": [{"method": "noise"}], "folder": tmp_path,
        "students": [
            {"name": "ptq", "bits": "W4A4", "widths": "w.csv"},
            {"name": "ptq", "bits": "W4A4", "widths": {"conv1.weight": 8, "linear.input": 8}},
        ],
    }  # fmt: skip
    students = recipe_protocol(validated(Recipe, values, "recipe")).students
    assert [student.spec.bits.rows for student in students] == [
        {"conv1.weight": 8},
        {"conv1.weight": 8, "linear.input": 8},
    ]
    assert [student.name for student in students] == ["ptq W4A4+1 rows", "ptq W4A4+2 rows"]
