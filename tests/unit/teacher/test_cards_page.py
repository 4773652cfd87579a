"""docs/cards.md names every field there is, its example is a card, and its module serves one."""

import re
import tomllib
from pathlib import Path

import torch

from zsq.core.imagespec import ImageSpec
from zsq.teacher import load_teacher
from zsq.teacher.card import TeacherCard, card_module

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


def test_the_module_serves_a_card(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    name, fields = re.match(r"# (\w+)\.py; in the card: (.*)\n", code).groups()
    (tmp_path / f"{name}.py").write_text(code)
    torch.save(card_module(name, tmp_path).net().state_dict(), tmp_path / "weights.pt")
    card = fields.replace(", ", "\n") + '\nweights = "weights.pt"\n'
    image = "[image]\nsize = [64, 64]\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n"
    (tmp_path / "teacher.toml").write_text(card + image)
    teacher = load_teacher(f"file:{tmp_path / 'teacher.toml'}")
    assert teacher.network(teacher.example()).shape[1:] == (21, 64, 64)
