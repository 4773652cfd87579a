"""Tools that quantize, each as one function: network and images in, a function from input to logits out.

Each runs in an environment of its own, so a tool is imported where its function is called.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zsq.adapters import calibrate, data_loader, nncf_dataset, representative_data
from zsq.adapters.loader import Images
from zsq.core.imagespec import ImageSpec
from zsq.widths import Bits

GPTQ_EPOCHS = 20
ADAROUND_ITERATIONS = 2000
BATCH = 32

Predict = Callable[[Tensor], Tensor]
Quantize = Callable[[nn.Module, ImageSpec, Images, Bits], Predict]


def example(spec: ImageSpec) -> Tensor:
    """Two empty inputs: with one, exporters would fix the batch."""
    return torch.zeros(2, spec.channels, *spec.network_size)


def onnx_file(network: nn.Module, spec: ImageSpec, folder: str) -> str:
    """The float network as ONNX, input `images`, output `logits`, of any batch."""
    path = str(Path(folder, "float.onnx"))
    shapes = ({0: torch.export.Dim("batch")},)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    torch.onnx.export(
        network, (example(spec),), path, dynamo=True, dynamic_shapes=shapes, verbose=False, **names
    )
    return path


# One export for all rows of a process; the folder lives as long.
_FOLDER = tempfile.TemporaryDirectory()


@functools.cache
def float_onnx(network: nn.Module, spec: ImageSpec) -> str:
    """The file of `onnx_file`, which a tool must leave as it is."""
    return onnx_file(network, spec, tempfile.mkdtemp(dir=_FOLDER.name))


@functools.cache
def float_tflite(network: nn.Module, spec: ImageSpec) -> str:
    """The float network for LiteRT, by litert-torch, for one image at a time."""
    import litert_torch

    path = str(Path(tempfile.mkdtemp(dir=_FOLDER.name), "float.tflite"))
    litert_torch.convert(network, (example(spec)[:1],)).export(path)
    return path


def onnx_session(path: str) -> Predict:
    """An ONNX file in ONNX Runtime, on the CPU with as many threads as torch."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda norm: torch.from_numpy(session.run(None, {"images": norm.numpy()})[0])


def norm_images(spec: ImageSpec, images: Images) -> Tensor:
    """All images as the network takes them."""
    batches = [
        batch[0] if isinstance(batch, list | tuple) else batch for batch in data_loader(images, spec=spec)
    ]
    return torch.cat(batches)


def onnxruntime(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits) -> Predict:
    """Static quantization in the QDQ form, min-max ranges, weights per channel."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from zsq.adapters import CalibrationReader

    kinds = {8: (QuantType.QInt8, QuantType.QUInt8), 4: (QuantType.QInt4, QuantType.QUInt4)}
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = (str(Path(folder, f"{name}.onnx")) for name in ("p", "q"))
        quant_pre_process(float_onnx(network, spec), prepared)
        quantize_static(
            prepared,
            quantized,
            CalibrationReader(images, prepared, spec=spec),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=kinds[bits.weights][0],
            activation_type=kinds[bits.activations][1],
        )
        return onnx_session(quantized)


def modelopt(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits) -> Predict:
    """NVIDIA Model Optimizer on ONNX, entropy ranges, as TensorRT takes it; run by ONNX Runtime."""
    from modelopt.onnx.quantization import quantize

    with tempfile.TemporaryDirectory() as folder:
        quantized = str(Path(folder, "q.onnx"))
        quantize(
            float_onnx(network, spec),
            quantize_mode="int8",
            calibration_data={"images": norm_images(spec, images).numpy()},
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=quantized,
            log_level="ERROR",
        )
        return onnx_session(quantized)


def quark(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits) -> Predict:
    """AMD Quark on ONNX, its configuration XINT8 for NPUs: scales are powers of two."""
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import get_default_config
    from quark.onnx.quantization.config.config import Config

    from zsq.adapters import CalibrationReader

    with tempfile.TemporaryDirectory() as folder:
        model, quantized = float_onnx(network, spec), str(Path(folder, "q.onnx"))
        quantizer = ModelQuantizer(Config(global_quant_config=get_default_config("XINT8")))
        quantizer.quantize_model(model, quantized, CalibrationReader(images, model, spec=spec))
        return onnx_session(quantized)


def aimet(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits, *, iterations: int = 0) -> Predict:
    """AIMET on ONNX: a simulation of the quantized network, with its own choice of ranges.

    With `iterations`, AdaRound first trains the rounding of the weights, for so many in each layer.
    """
    import onnx
    from aimet_onnx import apply_adaround
    from aimet_onnx.quantsim import QuantizationSimModel

    kinds = {"param_type": f"int{bits.weights}", "activation_type": f"int{bits.activations}"}
    model = onnx.load(float_onnx(network, spec))
    simulation = QuantizationSimModel(model, providers=["CPUExecutionProvider"], **kinds)
    batches = [{"images": batch.numpy()} for batch in norm_images(spec, images).split(BATCH)]
    if iterations:
        # The tool draws from the global generator and has no seed of its own.
        torch.manual_seed(0)
        apply_adaround(simulation, batches, num_iterations=iterations)
    simulation.compute_encodings(batches)
    return lambda norm: torch.from_numpy(simulation.session.run(None, {"images": norm.numpy()})[0])


def aimet_adaround(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits) -> Predict:
    """The same with AdaRound, for fewer iterations than the 15,000 that AIMET advises below 8 bits."""
    return aimet(network, spec, images, bits, iterations=ADAROUND_ITERATIONS)


def brevitas(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits) -> Predict:
    """Brevitas: batch norm folded, percentile ranges, first and last layer at 8 bits; below 8 bits GPTQ."""
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.graph.gptq import gptq_mode
    from brevitas.graph.quantize import preprocess_for_quantize
    from brevitas_examples.imagenet_classification.ptq.ptq_common import quantize_model

    prepared = preprocess_for_quantize(copy.deepcopy(network))
    quantized = quantize_model(
        prepared,
        backend="fx",
        weight_bit_width=bits.weights,
        act_bit_width=bits.activations,
        bias_bit_width=32,
        weight_quant_granularity="per_channel",
        act_quant_percentile=99.999,
        act_quant_type="sym",
        scale_factor_type="float_scale",
        quant_format="int",
    )
    batches = norm_images(spec, images).split(BATCH)
    with torch.no_grad(), calibration_mode(quantized):
        for batch in batches:
            quantized(batch)
    if bits.weights < 8:
        with torch.no_grad():
            quantized(batches[0])
        with torch.no_grad(), gptq_mode(quantized, use_quant_activations=False) as gptq:
            for _ in range(gptq.num_layers):
                for batch in batches:
                    gptq.model(batch)
                gptq.update()
    return quantized.eval()


def executorch(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits) -> Predict:
    """ExecuTorch: PT2E with the XNNPACK quantizer, weights per channel; the .pte run by its runtime."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    one = example(spec)[:1]
    prepared = prepare_pt2e(
        torch.export.export(network, (one,)).module(), xnnpack.XNNPACKQuantizer().set_global(config)
    )
    for image in norm_images(spec, images).split(1):
        prepared(image)
    exported = torch.export.export(convert_pt2e(prepared), (one,))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    # The runtime reads from this memory, and the method from the program: both must live as long.
    buffer = lowered.to_executorch().buffer
    program = Runtime.get().load_program(buffer)
    method = program.load_method("forward")
    alive = buffer, program

    def predict(norm: Tensor) -> Tensor:
        assert alive
        images = norm.contiguous().split(1)
        return torch.cat([method.execute((image.clone(),))[0].clone() for image in images])

    return predict


def litert(
    network: nn.Module, spec: ImageSpec, images: Images, bits: Bits, *, widest: bool = False
) -> Predict:
    """ai-edge-quantizer: static ranges, weights per channel; input and output are integers too.

    A range is a moving average over the images, where the newest counts a twentieth; `widest`
    takes the smallest and largest value of all images.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    recipe = RecipeManager()
    recipe.add_static_config(".*", "*", bits.activations, bits.weights)
    float_file = float_tflite(network, spec)
    settings = {"qsv_update_func": min_max_update} if widest else {}
    calibrator = Calibrator(float_file, num_threads=torch.get_num_threads(), **settings)
    one_by_one = [{"args_0": image.numpy()} for image in norm_images(spec, images).split(1)]
    calibrator.calibrate({"serving_default": one_by_one}, recipe)
    quantizer = Quantizer(float_file, recipe.get_quantization_recipe())
    ranges = calibrator.get_model_qsvs()
    content = bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model)
    interpreter = Interpreter(model_content=content, num_threads=torch.get_num_threads())
    runner = interpreter.get_signature_runner("serving_default")
    (taken,), (given,) = (
        details.values() for details in (runner.get_input_details(), runner.get_output_details())
    )

    def predict(norm: Tensor) -> Tensor:
        scale, zero = taken["quantization"]
        integers = (norm / scale).round().add(zero).clamp(-128, 127).to(torch.int8)
        found = [runner(args_0=image.numpy())["output_0"] for image in integers.split(1)]
        scale, zero = given["quantization"]
        return scale * (torch.from_numpy(np.concatenate(found)).float() - zero)

    return predict


def litert_widest(network: nn.Module, spec: ImageSpec, images: Images, bits: Bits) -> Predict:
    """The same with the widest ranges."""
    return litert(network, spec, images, bits, widest=True)


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
    "modelopt": (modelopt, ("nvidia-modelopt", "onnxruntime-gpu"), ("W8A8",)),
    "quark": (quark, ("amd-quark", "onnxruntime"), ("W8A8",)),
    "aimet": (aimet, ("aimet-onnx", "onnxruntime"), ("W8A8", "W4A8")),
    "aimet-adaround": (aimet_adaround, ("aimet-onnx", "onnxruntime"), ("W4A8",)),
    "brevitas": (brevitas, ("brevitas",), ("W8A8", "W4A4")),
    "executorch": (executorch, ("executorch", "torchao"), ("W8A8",)),
    "litert": (litert, ("ai-edge-quantizer", "ai-edge-litert", "litert-torch"), ("W8A8", "W4A8")),
    "litert-widest": (litert_widest, ("ai-edge-quantizer", "ai-edge-litert", "litert-torch"), ("W8A8",)),
    "mct-gptq": (mct_gptq, ("model-compression-toolkit",), ("W2A8",)),
}
