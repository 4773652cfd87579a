"""Programs that run a student's integers, each as one function: the student and its teacher in, files and
functions from one image to outputs out.

Each runs in an environment of its own, so a program is imported where its function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from consumer_tools import onnx_file
from torch import Tensor, nn

import zsq
from zsq.contract import FittedStudent, Teacher

# One image as the network takes it, (1, C, H, W) -> its outputs in their order.
Predict = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Deployed:
    """A network in a program: how it is run, and the bytes of its file."""

    predict: Predict
    file_bytes: int


# Student, its teacher, a folder for files -> the student, and the teacher in float.
Deploy = Callable[[FittedStudent, Teacher, Path], tuple[Deployed, Deployed]]


def onnx_files(fitted: FittedStudent, teacher: Teacher, folder: Path) -> tuple[Path, Path]:
    """The student and its teacher as ONNX."""
    quantized = folder / "student.onnx"
    zsq.export_onnx(fitted, quantized)
    return quantized, Path(onnx_file(teacher.network, teacher.spec, str(folder)))


def stored_bytes(path: Path) -> int:
    """Of a file, and of the weights that torch writes beside it."""
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))


def onnxruntime(fitted: FittedStudent, teacher: Teacher, folder: Path) -> tuple[Deployed, Deployed]:
    """The ONNX file as it is, on one thread."""
    import onnxruntime as ort

    def opened(path: Path) -> Deployed:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return Deployed(
            lambda norm: [torch.from_numpy(each) for each in session.run(None, {"images": norm.numpy()})],
            stored_bytes(path),
        )

    quantized, floats = onnx_files(fitted, teacher, folder)
    return opened(quantized), opened(floats)


def openvino(fitted: FittedStudent, teacher: Teacher, folder: Path) -> tuple[Deployed, Deployed]:
    """The ONNX file as OpenVINO's own, on one thread. What is not an integer is float32, not bfloat16."""
    import openvino as tool

    def opened(path: Path) -> Deployed:
        model = tool.convert_model(str(path))
        stored = path.with_suffix(".xml")
        tool.save_model(model, str(stored), compress_to_fp16=False)
        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = tool.Core().compile_model(str(stored), "CPU", settings)

        def predict(norm: Tensor) -> list[Tensor]:
            found = compiled(norm.numpy())
            return [torch.from_numpy(found[output].copy()) for output in compiled.outputs]

        return Deployed(predict, sum(stored.with_suffix(end).stat().st_size for end in (".xml", ".bin")))

    quantized, floats = onnx_files(fitted, teacher, folder)
    return opened(quantized), opened(floats)


def onnx2tf(fitted: FittedStudent, teacher: Teacher, folder: Path) -> tuple[Deployed, Deployed]:
    """The ONNX file through onnx2tf, in LiteRT."""
    import onnx2tf as tool

    # Without one of ours the tool wants to download a picture to compare with.
    height, width = teacher.spec.plane
    picture = folder / "picture.npy"
    np.save(picture, np.random.default_rng(0).random((20, height, width, teacher.spec.channels), np.float32))

    def opened(path: Path) -> Deployed:
        out = folder / path.stem
        tool.convert(
            input_onnx_file_path=str(path),
            output_folder_path=str(out),
            batch_size=1,
            test_data_nhwc_path=str(picture),
            non_verbose=True,
        )
        return in_litert(out / f"{path.stem}_float32.tflite")

    quantized, floats = onnx_files(fitted, teacher, folder)
    return opened(quantized), opened(floats)


def litert(fitted: FittedStudent, teacher: Teacher, folder: Path) -> tuple[Deployed, Deployed]:
    """`zsq.pt2e_student` through litert-torch, in LiteRT."""
    import litert_torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    config = get_symmetric_quantization_config(is_per_channel=True)
    # Nothing is quantized by it: it tells the converter that the operations are there.
    quantizer = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(config))
    image = (teacher.example()[:1],)

    def opened(network: nn.Module, name: str, **settings: Any) -> Deployed:
        path = folder / f"{name}.tflite"
        litert_torch.convert(network, image, **settings).export(str(path))
        return in_litert(path)

    program = torch.export.export(zsq.pt2e_student(fitted), image).module()
    return opened(program, "student", quant_config=quantizer), opened(teacher.network.eval(), "float")


def in_litert(path: Path) -> Deployed:
    """A file in LiteRT, on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (taken,), given = interpreter.get_input_details(), interpreter.get_output_details()
    # Outputs are named by their number; the file may hold them in another order.
    given = sorted(given, key=lambda each: each["name"])

    def predict(norm: Tensor) -> list[Tensor]:
        values = norm.numpy()
        if tuple(taken["shape"]) != values.shape:
            values = np.ascontiguousarray(values.transpose(0, 2, 3, 1))
        interpreter.set_tensor(taken["index"], values)
        interpreter.invoke()
        return [torch.from_numpy(interpreter.get_tensor(each["index"])) for each in given]

    return Deployed(predict, path.stat().st_size)


def executorch(fitted: FittedStudent, teacher: Teacher, folder: Path) -> tuple[Deployed, Deployed]:
    """`zsq.pt2e_student` with the XNNPACK partitioner, the .pte in ExecuTorch."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    image = (teacher.example()[:1],)

    def opened(network: nn.Module) -> Deployed:
        program = torch.export.export(network, image)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        # The runtime reads from this memory, and the method from the program: both must live as long.
        buffer = lowered.to_executorch().buffer
        loaded = Runtime.get().load_program(buffer)
        method = loaded.load_method("forward")
        alive = buffer, loaded

        def predict(norm: Tensor) -> list[Tensor]:
            assert alive
            return [each.clone() for each in method.execute((norm,))]

        return Deployed(predict, len(buffer))

    return opened(zsq.pt2e_student(fitted)), opened(teacher.network)


# Program -> its function and its packages; its environment is benchmarks/consumers/PROGRAM.txt, and that of
# onnxruntime the one of openvino.
RUNTIMES: dict[str, tuple[Deploy, tuple[str, ...]]] = {
    "onnxruntime": (onnxruntime, ("onnxruntime", "onnx")),
    "openvino": (openvino, ("openvino", "onnx")),
    "onnx2tf": (onnx2tf, ("onnx2tf", "ai-edge-litert", "tensorflow", "onnx")),
    "litert": (litert, ("litert-torch", "ai-edge-litert")),
    "executorch": (executorch, ("executorch", "torchao")),
}
