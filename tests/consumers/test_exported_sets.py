"""`zsq export --for TOOL` gives a tool what it takes, where no page of docs/ already shows it."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import REPOSITORY
from test_docs import TOOLS

import zsq

sys.path.append(str(REPOSITORY / "benchmarks"))
import consumer_tools


def quark(model, folder, out):
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import get_default_config
    from quark.onnx.quantization.config.config import Config

    quantizer = ModelQuantizer(Config(global_quant_config=get_default_config("XINT8")))
    quantizer.quantize_model(model, str(out), calibration_data_path=str(folder / "images"))
    return consumer_tools.onnx_session(str(out))


def aimet(model, folder, out):
    import onnx
    from aimet_onnx.quantsim import QuantizationSimModel

    simulation = QuantizationSimModel(onnx.load(model), providers=["CPUExecutionProvider"])
    images = np.load(folder / "images.npy")
    simulation.compute_encodings([{"images": image[None]} for image in images])
    return lambda norm: torch.from_numpy(simulation.session.run(None, {"images": norm.numpy()})[0])


@pytest.mark.consumers
@pytest.mark.parametrize("tool", [quark, aimet], ids=lambda tool: tool.__name__)
def test_the_tool_takes_the_exported_set(tool, tmp_path, monkeypatch):
    # Quark writes a file of its own where it is called.
    monkeypatch.chdir(tmp_path)
    name = tool.__name__
    if find_spec(TOOLS[name]) is None:
        pytest.skip(f"{TOOLS[name]} is not installed: use the environment of benchmarks/consumers/{name}.txt")
    digits = zsq.load_teacher("embedded:digits")
    run = zsq.generate("embedded:digits", "deepinversion", count=64, iterations=50, out=tmp_path / "run")
    zsq.export(run, tool=name, out=tmp_path / "set")
    model = consumer_tools.onnx_file(digits.network, digits.spec, str(tmp_path))
    predict = tool(model, Path(tmp_path / "set"), tmp_path / "int8.onnx")
    test = zsq.load_images("embedded:digits:test", digits.spec)
    found = predict(digits.spec.pixels_to_norm(test.pixels)).argmax(1)
    assert (found == test.labels).double().mean() > 0.97
