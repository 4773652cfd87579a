"""What public functions make of paths as text, as Path, and of what is neither."""

from pathlib import Path

import pytest

import zsq

DIGITS, TRAIN, TEST = "embedded:digits", "embedded:digits:train", "embedded:digits:test"
CARDS = {
    "load_teacher": lambda card: zsq.load_teacher(card),
    "generate": lambda card: zsq.generate(card, "noise", count=8),
    "generate without a method": lambda card: zsq.generate(card, count=8),
    "quantize": lambda card: zsq.quantize(card, TRAIN, "ptq", "W8A8"),
    "audit": lambda card: zsq.audit(card, TRAIN, TRAIN, TEST),
    "inspect_teacher": lambda card: zsq.inspect_teacher(card),
    "verify_export": lambda card: zsq.verify_export("run", "arrays", teacher=card),
}
PATHS = {
    "ShardDataset": lambda path: zsq.ShardDataset(path),
    "audit": lambda path: zsq.audit(DIGITS, path, TRAIN, TEST),
    "audit weights": lambda path: zsq.audit(DIGITS, TRAIN, TRAIN, TEST, weights=path or 0),
    "export": lambda path: zsq.export(path, "npy", "arrays"),
    "inspect": lambda path: zsq.inspect(path),
    "inspect_student": lambda path: zsq.inspect_student(path, TRAIN),
    "load_student": lambda path: zsq.load_student(path),
    "load_teacher weights": lambda path: zsq.load_teacher("cifar10:resnet20", path),
    "quantize widths": lambda path: zsq.quantize(DIGITS, TRAIN, "ptq", "W8A8", widths=path or 0),
    "verify_export": lambda path: zsq.verify_export(path, "arrays"),
    "verify_run": lambda path: zsq.verify_run(path),
}


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("card", [Path("mine.toml"), 3, None], ids=str)
def test_a_teacher_is_a_name_or_the_path_of_a_card(name, card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "verify_export" and card is None:
        return
    with pytest.raises(zsq.ZsqError, match="mine.toml" if card == Path("mine.toml") else "teacher"):
        CARDS[name](card)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("path", [3, None, Path("nowhere"), "nowhere"], ids=repr)
def test_a_path_is_text_or_a_path(name, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(zsq.ZsqError) as caught:
        PATHS[name](path)
    assert "\n" not in str(caught.value)
