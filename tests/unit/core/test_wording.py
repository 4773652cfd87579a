"""Numbers in sentences, and where a user meets them."""

import re
from pathlib import Path

import pytest

import zsq
from zsq.core.errors import ZsqError
from zsq.core.wording import printable, quantity


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "image", "1 image"),
        (0, "image", "0 images"),
        (2, "class", "2 classes"),
        (1.0, "teacher pass", "1 teacher pass"),
        (2.5, "teacher pass", "2.5 teacher passes"),
        (3, "identity", "3 identities"),
        (2, "batch norm layer", "2 batch norm layers"),
    ],
)
def test_a_number_has_its_noun_in_its_form(number, noun, text):
    assert quantity(number, noun) == text


def test_no_module_builds_a_plural_of_its_own():
    folder = Path(zsq.__file__).parent
    own = re.compile(r"\((s|es)\)|[\"']1 \w+[\"'] if ")
    found = [
        f"{path.name}: {line.strip()}"
        for path in folder.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if own.search(line) and "re." not in line
    ]
    assert found == []


def test_nothing_that_a_terminal_obeys_is_in_a_message():
    told = str(ZsqError("file\x1b[2J\u202e.png", "none\nelse"))
    assert told == "file\ufffd[2J\ufffd.png; expected none else"
    assert printable("two\nlines\t\u00e9") == "two\nlines\t\u00e9"
