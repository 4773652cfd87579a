"""Teacher names: what they lead to, and what is refused."""

from pathlib import Path

import pytest
import torch

from zsq.core.errors import OptionError, UnknownNameError, UsageError
from zsq.teacher import builtin_teachers, load_teacher


def test_builtin_names_are_unique_and_described():
    names = [name for name, _ in builtin_teachers()]
    assert len(set(names)) == len(names)
    assert {"embedded:digits", "cifar10:resnet20", "cifar10:resnet110", "resnet18", "mobilenet_v2"} <= set(
        names
    )
    assert all(description for _, description in builtin_teachers())
    assert not {"deeplabv3_resnet50", "fasterrcnn_resnet50_fpn", "r3d_18"} & set(names)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet19", "resnet1"),
        ("cifar10:resnet21", "cifar10:resnet20"),
        ("embedded:digit", "embedded:digits"),
        ("fasterrcnn_resnet50_fpn", "zsq list teachers"),
    ],
)
def test_unknown_names(name, near):
    with pytest.raises(UnknownNameError, match=f"unknown teacher '{name}'.*{near}"):
        load_teacher(name)


@pytest.mark.parametrize(
    "name", ["teacher.toml", "./resnet18", "runs/net.pt", "net.SAFETENSORS", r"c:\net.th"]
)
def test_a_bare_path_is_refused_with_both_corrections(name):
    with pytest.raises(UsageError) as caught:
        load_teacher(name)
    assert f"file:{name}" in str(caught.value) and f"--weights {name}" in str(caught.value)


def test_digits_take_no_other_weights():
    with pytest.raises(OptionError, match="has its own weights"):
        load_teacher("embedded:digits", Path("other.pt"))


def test_loading_leaves_the_global_random_state():
    before = torch.get_rng_state()
    load_teacher("embedded:digits")
    assert torch.equal(torch.get_rng_state(), before)
