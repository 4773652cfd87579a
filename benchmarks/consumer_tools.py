"""Four tools that quantize, each as one function: network and images in, a function from input to logits out.

Each runs in an environment of its own, so a tool is imported where its function is called.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zsq.adapters import calibrate, nncf_dataset, representative_data
from zsq.adapters.loader import Images
from zsq.core.imagespec import ImageSpec
from zsq.widths import Bits

GPTQ_EPOCHS = 20

Predict = Callable[[Tensor], Tensor]
Quantize = Callable[[nn.Module, ImageSpec, Images, Bits], Predict]


def example(spec: ImageSpec) -> Tensor:
    """Two empty inputs: with one, exporters would fix the batch."""
    return torch.zeros(2, spec.channels, *(spec.input_size or spec.size))


def onnxruntime(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits) -> Predict:
    """Static quantization in the QDQ form, min-max ranges, weights per channel."""
    import onnxruntime as ort
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from zsq.adapters import CalibrationReader

    kinds = {8: (QuantType.QInt8, QuantType.QUInt8), 4: (QuantType.QInt4, QuantType.QUInt4)}
    with tempfile.TemporaryDirectory() as folder:
        model, prepared, quantized = (str(Path(folder, f"{name}.onnx")) for name in ("f", "p", "q"))
        shapes = ({0: torch.export.Dim("batch")},)
        names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
        torch.onnx.export(
            network, (example(spec),), model, dynamo=True, dynamic_shapes=shapes, verbose=False, **names
        )
        quant_pre_process(model, prepared)
        quantize_static(
            prepared,
            quantized,
            CalibrationReader(images, prepared, spec=spec),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=kinds[bits.weights][0],
            activation_type=kinds[bits.activations][1],
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(quantized, options, providers=["CPUExecutionProvider"])
    return lambda norm: torch.from_numpy(session.run(None, {"images": norm.numpy()})[0])


def nncf(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits) -> Predict:
    """Post-training quantization of the OpenVINO model, with fast bias correction.

    Below 8 bits only the rules for NPU allow anything, and sums and products must then stay in float.
    """
    import nncf as tool
    import openvino
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    tool.set_log_level(40)
    inputs = example(spec)
    model = openvino.convert_model(network, example_input=inputs, input=[-1, *inputs.shape[1:]])
    settings: dict[str, Any] = {"target_device": tool.TargetDevice.CPU}
    if bits.weights != 8:
        settings = {
            "target_device": tool.TargetDevice.NPU,
            "ignored_scope": tool.IgnoredScope(types=["Multiply", "Add"], validate=False),
            "advanced_parameters": AdvancedQuantizationParameters(
                weights_quantization_params=QuantizationParameters(num_bits=bits.weights)
            ),
        }
    data = nncf_dataset(images, spec=spec)
    quantized = tool.quantize(model, data, subset_size=data.get_length(), **settings)
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    compiled = core.compile_model(quantized, "CPU")
    return lambda norm: torch.from_numpy(compiled(norm.numpy())[0].copy())


def torchao(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits) -> Predict:
    """PT2E with the x86 quantizer and its histogram observers; below 8 bits with narrower integer ranges."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config()
    half, top = 2 ** (bits.weights - 1), 2**bits.activations - 1
    config = dataclasses.replace(
        config,
        weight=dataclasses.replace(config.weight, quant_min=-half, quant_max=half - 1),
        input_activation=dataclasses.replace(config.input_activation, quant_max=top),
        output_activation=dataclasses.replace(config.output_activation, quant_max=top),
    )
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(network, (example(spec),), dynamic_shapes=shapes).module()
    prepared = prepare_pt2e(exported, x86.X86InductorQuantizer().set_global(config))
    calibrate(prepared, images, spec=spec)
    return convert_pt2e(prepared)


def mct(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits) -> Predict:
    """Post-training quantization for the IMX500, whose description is narrowed below 8 bits."""
    import model_compression_toolkit as tool

    quantized, _ = tool.ptq.pytorch_post_training_quantization(
        network, representative_data(images, spec=spec), target_platform_capabilities=_imx500(bits)
    )
    return quantized.eval()


def mct_gptq(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits) -> Predict:
    """The same, with the rounding trained on the images for GPTQ_EPOCHS, without its costly Hessians."""
    import model_compression_toolkit as tool

    config = tool.gptq.get_pytorch_gptq_config(
        n_epochs=GPTQ_EPOCHS, use_hessian_based_weights=False, use_hessian_sample_attention=False
    )
    # The tool draws from the global generator and has no seed of its own.
    torch.manual_seed(0)
    quantized, _ = tool.gptq.pytorch_gradient_post_training_quantization(
        network,
        representative_data(images, spec=spec),
        gptq_config=config,
        target_platform_capabilities=_imx500(bits),
    )
    return quantized.eval()


def _imx500(bits: Bits) -> Any:
    from model_compression_toolkit.target_platform_capabilities.constants import KERNEL_ATTR, WEIGHTS_N_BITS
    from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0 import tpc

    base, _, other = tpc.get_op_quantization_configs()
    width = bits.activations
    activations = {"activation_n_bits": width, "supported_input_activation_n_bits": (width,)}
    base = base.clone_and_edit(attr_to_edit={KERNEL_ATTR: {WEIGHTS_N_BITS: bits.weights}}, **activations)
    return tpc.generate_tpc(
        default_config=other.clone_and_edit(**activations),
        base_config=base,
        mixed_precision_cfg_list=[base],
        name=str(bits),
    )


# Tool -> its function, its packages, and bits: 8, and the lowest that it offers for a convolution. What
# trains on the images stands there with the lowest alone.
TOOLS: dict[str, tuple[Quantize, tuple[str, ...], tuple[str, ...]]] = {
    "onnxruntime": (onnxruntime, ("onnxruntime", "onnx", "onnxscript"), ("W8A8", "W4A4")),
    "nncf": (nncf, ("nncf", "openvino"), ("W8A8", "W4A8")),
    "torchao": (torchao, ("torchao",), ("W8A8", "W4A4")),
    "mct": (mct, ("model-compression-toolkit",), ("W8A8", "W4A4")),
    "mct-gptq": (mct_gptq, ("model-compression-toolkit",), ("W2A8",)),
}
