"""docs/cards.md names every field there is, and its example is a card."""

import re
import tomllib
from pathlib import Path

from zsq.core.imagespec import ImageSpec
from zsq.teacher.card import TeacherCard

PAGE = (Path(__file__).parents[3] / "docs" / "cards.md").read_text(encoding="utf-8")


def test_every_field_of_a_card_has_a_row():
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == (set(TeacherCard.model_fields) | set(ImageSpec.model_fields)) - {"image"}


def test_defaults_are_those_of_the_models():
    fields = TeacherCard.model_fields | ImageSpec.model_fields
    for line in PAGE.splitlines():
        match = re.match(r"\| (?:`\[image\]` )?`(\w+)` \| `\"(\w+)\"` \|", line)
        if match:
            assert fields[match[1]].default == match[2]
    assert "| `channels` | 3 |" in PAGE and fields["channels"].default == 3


def test_the_example_is_a_card():
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    card = TeacherCard(**tomllib.loads(text))
    assert card.classes == ("cat", "dog", "horse") and card.photo_fit.resize == 256
