"""Every script in docs/ runs as it stands; those of a tool where the tool is installed. What stands in
```python is a script or a module; parts of one have no language.

`pip install -r benchmarks/consumers/TOOL.txt` in an environment of its own, then `pytest -m consumers`.
"""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import PYTHON, REPOSITORY, run_python, run_script

TOOLS = {
    "aimet": "aimet_onnx",
    "brevitas": "brevitas",
    "executorch": "executorch",
    "litert": "ai_edge_quantizer",
    "mct": "model_compression_toolkit",
    "modelopt": "modelopt",
    "nncf": "nncf",
    "onnxruntime": "onnxruntime",
    "quark": "quark",
    "torchao": "torchao",
    "webdataset": "webdataset",
}
# Pages whose Python another file of tests runs.
ELSEWHERE = {
    "cards": "tests/unit/teacher/test_cards_page.py",
    "detectors": "tests/unit/tasks/test_detectors_page.py",
    "extending": "tests/generators/test_plugins.py",
    "runtimes": "tests/consumers/test_runtimes.py",
}
HERE = {"exchange", "layers", "saving", "shards", "students", "upstream"}


def script(page):
    (block,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / page).read_text(), re.DOTALL)
    return block


def test_exchange(tmp_path, monkeypatch, capsys):
    said = run_script(script("exchange.md"), tmp_path, monkeypatch, capsys)
    assert "32 images, logits within" in said


def test_saving(tmp_path, monkeypatch, capsys):
    said = run_script(script("saving.md"), tmp_path, monkeypatch, capsys).split()
    assert "bit operations" in " ".join(said)
    assert said[-3].rstrip(",") == said[-1] and float(said[-1]) > 98


def test_students(tmp_path, monkeypatch, capsys):
    assert run_script(script("students.md"), tmp_path, monkeypatch, capsys) == "ptq,lsq-kd\n"


def test_layers(tmp_path, monkeypatch, capsys):
    said = run_script(script("layers.md"), tmp_path, monkeypatch, capsys)
    assert re.fullmatch(r"[\w.]+: [\d.]+ dB, of all layers together [\d.]+ dB\n", said)


def test_shards(tmp_path, monkeypatch, capsys):
    assert "torch.Size([1, 32, 32])" in run_script(script("shards.md"), tmp_path, monkeypatch, capsys)


def test_upstream():
    """Its process survives or dies of the fault; it never ends in a mistake of the script."""
    done = subprocess.run([PYTHON, "-c", script("upstream.md")], capture_output=True, text=True)
    assert done.stdout == "survived\n" if done.returncode == 0 else done.returncode < 0, done.stderr


def test_every_page_with_python_is_run():
    pages = {page.stem: page.read_text() for page in (REPOSITORY / "docs").glob("*.md")}
    assert {name for name, text in pages.items() if "```python" in text} == {*TOOLS, *ELSEWHERE, *HERE}
    assert all(f"{name}.md" in (REPOSITORY / file).read_text() for name, file in ELSEWHERE.items())


@pytest.mark.consumers
@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_script_of_a_tool(tool, tmp_path):
    if find_spec(TOOLS[tool]) is None:
        pytest.skip(f"{TOOLS[tool]} is not installed: use the environment of benchmarks/consumers/{tool}.txt")
    said = run_python(script(f"{tool}.md"), cwd=tmp_path).strip().splitlines()[-1]
    if tool == "webdataset":
        assert said == "64 images with labels"
    else:
        assert float(said.split()[-1]) > 80


def test_every_tool_has_a_page_a_pin_and_an_extra():
    text = (REPOSITORY / "pyproject.toml").read_text()
    for tool in TOOLS:
        assert (REPOSITORY / "docs" / f"{tool}.md").is_file()
        assert re.search(rf"^{tool} = \[", text, re.MULTILINE)
        lines = Path(REPOSITORY / "benchmarks" / "consumers" / f"{tool}.txt").read_text().splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))
