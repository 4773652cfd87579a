"""A message about a user's code names the user's line."""

import importlib

import pytest
import torch

from zsq.core.userline import user_line


def caught(call):
    with pytest.raises(Exception) as found:
        call()
    return found.value


def test_the_last_line_outside_of_torch_is_named():
    layer = torch.nn.Linear(3, 4)

    def forward():
        return layer(torch.zeros(1, 5))

    line = user_line(caught(forward))
    assert line.startswith(" at test_userline.py:") and line.endswith("`return layer(torch.zeros(1, 5))`")


def test_a_line_of_pythons_own_is_no_users(monkeypatch):
    monkeypatch.setattr("zsq.core.userline.ZSQ", importlib.import_module("pathlib").Path(__file__).parent)
    assert user_line(caught(lambda: importlib.import_module("no_such_module"))) == ""
