"""The card and the lines of README.md work for a network of one's own."""

import re

import numpy as np
import torch
from commands import REPOSITORY, run_script
from PIL import Image

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("recipes/*.md")]
NETWORK = """
from torch import nn

def MyNet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )
"""


def test_a_network_of_ones_own(tmp_path, monkeypatch, capsys):
    (card,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "teacher.toml").write_text(card)
    (tmp_path / "mynet.py").write_text(NETWORK)
    namespace = {}
    exec(NETWORK, namespace)
    torch.save(namespace["MyNet"]().state_dict(), tmp_path / "weights.pt")
    (tmp_path / "teacher.toml").write_text(card.replace("mynet.safetensors", "weights.pt"))
    for label in range(10):
        folder = tmp_path / "test" / str(label)
        folder.mkdir(parents=True)
        Image.fromarray(np.full((32, 32, 3), 20 * label, np.uint8)).save(folder / "0.png")
    # Fewer images and steps, and no ONNX file: its packages are an extra.
    short = code.replace('onnx="int8.onnx"', 'count=16, effort="quick"')
    assert short.count("quick") == 1 and "onnx" not in short
    assert "'accuracy'" in run_script(short, tmp_path, monkeypatch, capsys)


def test_every_link_leads_somewhere():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
            other = (page.parent / target) if target else page
            assert other.exists(), f"{page.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_the_readme_fits_on_three_screens():
    assert len(README.splitlines()) <= 120
