"""The widths that quantizers may have: one rule for the command line, options and files."""

import re
from pathlib import Path

import pytest

import zsq
from zsq.core.errors import OptionError
from zsq.widths import Bits, check_first_last, is_width


def test_widths():
    assert [bits for bits in range(-1, 40) if is_width(bits)] == [2, 3, 4, 5, 6, 7, 8, 32]


@pytest.mark.parametrize("text", ["W4A4", " w2a8 ", "W32A32", "W8A32"])
def test_texts(text):
    assert str(Bits.parse(text)) == text.strip().upper()


@pytest.mark.parametrize("text", ["", "W4", "W1A4", "W4A9", "W-4A4", "W444A4", "W4A4A4"])
def test_texts_that_are_none(text):
    with pytest.raises(OptionError, match=re.escape("expected W2..W8 or W32 with A2..A8 or A32")):
        Bits.parse(text)


@pytest.mark.parametrize("bits", [-8, 0, 1, 9, 31, 33])
def test_first_and_last_layer(bits):
    with pytest.raises(OptionError, match=r"expected 2\.\.8, or 32 for float"):
        check_first_last(bits)
    check_first_last(None)


def test_the_limit_stands_in_one_file():
    found = [
        path.name
        for path in Path(zsq.__file__).parent.rglob("*.py")
        if re.search(r"range\(2, 9\)|ge=2, le=8|\[2-8\]", path.read_text())
    ]
    assert found == []
