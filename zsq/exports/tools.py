"""What each tool takes as a calibration set: a row of one table, after the tool's own documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from zsq.core.imagespec import ImageSpec
    from zsq.exports.export_json import Each, Layout, Range


@dataclass(frozen=True)
class Tool:
    """How `zsq export --for` writes a set.

    Attributes:
        page: of the tool's documentation. `read`: what the row was written from, the page itself, the
            docstrings of the installed tool, or public examples of its use. `version`: that the page or the
            tool itself stated; "not checked" where no such statement was at hand.
        run_here: whether a test of zsq gives such a set to the tool itself.
        hand_over: the image spec -> how the tool is told of the set and of mean and deviation.
    """

    page: str
    read: Literal["its page", "its docstrings", "public examples"]
    version: str
    run_here: bool
    to: str
    layout: Layout | None
    range: Range
    hand_over: Callable[[ImageSpec], str]
    each: Each | None = None


def _scaled(spec: ImageSpec, factor: float) -> tuple[list[float], list[float]]:
    """Mean and deviation of pixels times `factor`/255, in the order rgb."""
    mean, std = spec.unit_moments
    return [round(factor * value, 4) for value in mean], [round(factor * value, 4) for value in std]


def _rknn(spec: ImageSpec) -> str:
    mean, std = _scaled(spec, 255)
    swap = ", quant_img_RGB2BGR=True" if spec.channel_order == "bgr" else ""
    return (
        f"rknn.config(mean_values=[{mean}], std_values=[{std}]{swap}, target_platform=...); "
        "rknn.build(do_quantization=True, dataset='list.txt'), from inside the folder"
    )


def _hailo(spec: ImageSpec) -> str:
    mean, std = _scaled(spec, 255)
    return (
        f"in the model script normalization1 = normalization({mean}, {std}); "
        "runner.optimize(np.load('images.npy').astype(np.float32))"
    )


def _onnx2tf(spec: ImageSpec) -> str:
    mean, std = ([[[values]]] for values in _scaled(spec, 1))
    return f'onnx2tf -i float.onnx -oiqt -cind INPUT images.npy "{mean}" "{std}"'


def _said(text: str) -> Callable[[ImageSpec], str]:
    return lambda spec: text


# Where a tool normalises by itself it gets pixels; where it takes what the network takes, normalised values.
TOOLS: dict[str, Tool] = {
    "rknn": Tool(
        "https://github.com/airockchip/rknn-toolkit2/tree/master/rknn-toolkit2/examples",
        "public examples",
        "not checked",
        *(False, "files", None, "uint8", _rknn),
        each="png",
    ),
    "qnn": Tool(
        "https://docs.qualcomm.com/doc/80-63442-10/topic/qairt_quantizer.html",
        "its page",
        "QAIRT 2.36",
        *(False, "files", "nhwc", "norm"),
        _said(
            "qairt-quantizer --input_dlc float.dlc --input_list list.txt, from inside the folder; a DLC "
            "whose input is (N, C, H, W) wants --layout nchw here"
        ),
        each="raw",
    ),
    "hailo": Tool(
        "https://github.com/hailo-ai/hailo_model_zoo/blob/master/docs/OPTIMIZATION.rst",
        "public examples",
        "not checked",
        *(False, "npy", "nhwc", "uint8", _hailo),
    ),
    "litert": Tool(
        "https://github.com/google-ai-edge/ai-edge-quantizer",
        "its page",
        "ai-edge-quantizer 0.10",
        *(True, "npy", "nhwc", "norm"),
        _said(
            "Quantizer.calibrate({'serving_default': [{INPUT: image[None]} for image in "
            "np.load('images.npy')]}); a model whose input is (N, C, H, W), as of litert-torch, wants "
            "--layout nchw here"
        ),
    ),
    "onnx2tf": Tool(
        "https://github.com/PINTO0309/onnx2tf#cli-parameter",
        "its page",
        "1.29",
        *(False, "npy", "nhwc", "unit", _onnx2tf),
    ),
    "modelopt": Tool(
        "https://nvidia.github.io/Model-Optimizer/guides/_onnx_quantization.html",
        "its page",
        "0.47",
        *(True, "npy", "nchw", "norm"),
        _said(
            "python -m modelopt.onnx.quantization --onnx_path=float.onnx --quantize_mode=int8 "
            "--calibration_data_path=images.npy --calibration_eps=cpu"
        ),
    ),
    "quark": Tool(
        "https://github.com/amd/Quark/blob/main/docs/source/onnx/basic_usage_onnx.rst",
        "its docstrings",
        "0.13",
        *(True, "files", "nchw", "norm"),
        _said("ModelQuantizer(config).quantize_model(MODEL, OUT, calibration_data_path='images')"),
        each="npy",
    ),
    "aimet": Tool(
        "https://github.com/quic/aimet",
        "its docstrings",
        "aimet-onnx 2.42",
        *(True, "npy", "nchw", "norm"),
        _said(
            "QuantizationSimModel.compute_encodings([{INPUT: image[None]} for image in "
            "np.load('images.npy')])"
        ),
    ),
    "polygraphy": Tool(
        "https://github.com/NVIDIA/TensorRT/tree/main/tools/Polygraphy/examples/cli/convert/"
        "01_int8_calibration_in_tensorrt",
        "its page",
        "0.53",
        *(False, "npy", "nchw", "norm"),
        _said(
            "polygraphy convert float.onnx --int8 --data-loader-script data_loader.py, whose load_data() "
            "yields {INPUT: image[None]} for every image of np.load('images.npy')"
        ),
    ),
    "openvino": Tool(
        "https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/"
        "quantizing-models-post-training/basic-quantization-flow.html",
        "its page",
        "2025",
        *(False, "npy", "nchw", "norm"),
        _said("nncf.quantize(model, nncf.Dataset(np.load('images.npy')[:, None]))"),
    ),
}
