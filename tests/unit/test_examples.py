"""Every public function has an example in its docstring, and the example runs as it stands."""

import doctest
import inspect
from importlib.util import find_spec

import pytest

import zsq

PUBLIC = [name for name in zsq.__all__ if name != "__version__"]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name, tmp_path, monkeypatch):
    if name == "export_onnx" and not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        pytest.skip("onnx is not installed: use the environment of benchmarks/consumers/onnxruntime.txt")
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(getattr(zsq, name))
    example = doctest.DocTestParser().get_doctest(text, {"zsq": zsq}, name, None, None)
    assert example.examples, f"{name} has no example"
    said = []
    outcome = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
    assert outcome.failed == 0, "".join(said)
