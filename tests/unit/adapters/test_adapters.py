"""What tools are fed is what the teacher takes, computed here with numpy. Doubles stand in for the tools."""

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from toys import image_spec

import zsq
from zsq.adapters import CalibrationImages, calibrate, data_loader, nncf_dataset, representative_data
from zsq.adapters.loader import Batches
from zsq.core.errors import MismatchError, MissingExtraError, OptionError


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "digits"
    return zsq.generate(
        "embedded:digits", "deepinversion", count=10, shard_size=4, batch=4, iterations=1, out=folder
    )


@pytest.fixture(scope="module")
def norm(digits):
    """Of all images, in float64."""
    dataset = zsq.ShardDataset(digits)
    unit = dataset.pixels().numpy().astype(np.float64) / 255
    return (unit - dataset.spec.mean[0]) / dataset.spec.std[0]


@pytest.fixture
def tools(monkeypatch):
    """Stand-ins for the four tools."""
    for name in ("nncf", "torchao", "model_compression_toolkit", "onnxruntime", "onnxruntime.quantization"):
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["nncf"].Dataset = lambda source, transform: [transform(item) for item in source]
    sys.modules["onnxruntime.quantization"].CalibrationDataReader = object
    monkeypatch.delitem(sys.modules, "zsq.adapters.onnxruntime", raising=False)
    yield sys.modules
    sys.modules.pop("zsq.adapters.onnxruntime", None)


def with_inputs(tools, *inputs):
    described = [SimpleNamespace(name=name, shape=shape, type=kind) for name, shape, kind in inputs]
    session = SimpleNamespace(get_inputs=lambda: described)
    tools["onnxruntime"].InferenceSession = lambda source, providers: session
    return import_module("zsq.adapters.onnxruntime").CalibrationReader


def test_images_are_normalised_and_labelled(digits, norm):
    images = CalibrationImages(digits)
    assert len(images) == 10
    for index in (0, 5, 9, -1):
        image, label = images[index]
        np.testing.assert_allclose(image.numpy(), norm[index], atol=1e-5)
        assert label == zsq.ShardDataset(digits).labels()[index]
    with pytest.raises(IndexError):
        images[10]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader(digits, norm, workers):
    batches = list(data_loader(digits, 4, num_workers=workers))
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    np.testing.assert_allclose(torch.cat([images for images, _ in batches]).numpy(), norm, atol=1e-5)
    assert torch.equal(torch.cat([labels for _, labels in batches]), zsq.ShardDataset(digits).labels())


def test_loader_shuffles_by_its_seed(digits):
    first, again, other = (
        torch.cat([images for images, _ in data_loader(digits, 4, shuffle=True, seed=seed)])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_any_source_and_the_teachers_own_spec(digits, norm):
    spec = zsq.load_teacher("embedded:digits").spec
    dataset = zsq.ShardDataset(digits)
    for images in (dataset, str(digits), digits / "shards", zsq.load_images(digits)):
        np.testing.assert_allclose(Batches(images, 10)[0].numpy(), norm, atol=1e-5)
    assert len(CalibrationImages("embedded:digits:val", spec)) > 10
    with pytest.raises(MismatchError, match=r"name no teacher.*spec="):
        CalibrationImages("embedded:digits:val")
    with pytest.raises(MismatchError, match=r"images of \(1, 32, 32\); expected \(3, 16, 16\)"):
        CalibrationImages(digits, image_spec())


def test_a_teacher_that_resizes_gets_resized_images(digits):
    spec = zsq.ShardDataset(digits).spec.model_copy(
        update={"input_size": (16, 16), "interpolation": "nearest"}
    )
    images = CalibrationImages(digits, spec)
    assert images.input_shape == (1, 16, 16) and images[0][0].shape == (1, 16, 16)


def test_mct_goes_through_all_images_at_each_call(digits, norm, tools):
    representative = representative_data(digits, 4)
    for _ in range(2):
        batches = list(representative())
        assert all(isinstance(batch, list) and len(batch) == 1 for batch in batches)
        np.testing.assert_allclose(torch.cat([batch[0] for batch in batches]).numpy(), norm, atol=1e-5)


def test_torchao_sees_every_image_without_gradients(digits, norm, tools):
    seen = []

    class Prepared(torch.nn.Module):
        def forward(self, images):
            assert not torch.is_grad_enabled()
            seen.append(images)

    assert calibrate(Prepared(), digits, 4) == 10
    np.testing.assert_allclose(torch.cat(seen).numpy(), norm, atol=1e-5)


def test_nncf_is_fed_what_the_framework_takes(digits, norm, tools):
    arrays = nncf_dataset(digits)
    assert len(arrays) == 10 and all(isinstance(array, np.ndarray) for array in arrays)
    np.testing.assert_allclose(np.concatenate(arrays), norm, atol=1e-5)
    (tensors,) = nncf_dataset(digits, 10, framework="torch")
    assert isinstance(tensors, torch.Tensor)
    named = nncf_dataset(digits, 5, framework="onnx", input_name="x", layout="nhwc")
    np.testing.assert_allclose(named[1]["x"], norm[5:].transpose(0, 2, 3, 1), atol=1e-5)
    with pytest.raises(OptionError, match="framework keras"):
        nncf_dataset(digits, framework="keras")
    with pytest.raises(OptionError, match="layout hwc"):
        nncf_dataset(digits, layout="hwc")


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ([1, 1, 32, 32], (0, 1, 2, 3)),
        (["batch", 32, 32, 1], (0, 2, 3, 1)),
        (["n", "c", "h", "w"], (0, 1, 2, 3)),
    ],
)
def test_onnxruntime_reads_name_and_layout(digits, norm, tools, shape, axes):
    reader = with_inputs(tools, ("x", shape, "tensor(float)"))(digits, "model.onnx")
    fed = []
    while (item := reader.get_next()) is not None:
        assert list(item) == ["x"] and item["x"].dtype == np.float32
        fed.append(item["x"])
    assert len(fed) == len(reader) == 10
    np.testing.assert_allclose(np.concatenate(fed), norm.transpose(axes), atol=1e-5)
    reader.rewind()
    np.testing.assert_array_equal(reader.get_next()["x"], fed[0])


def test_onnxruntime_strides_and_ranges(digits, norm, tools):
    reader = with_inputs(tools, ("x", ["n", 1, 32, 32], "tensor(float)"))(digits, "model.onnx", stride=3)
    assert len(reader) == 4
    for start, end in ((0, 2), (2, 4)):
        reader.set_range(start, end)
        fed = list(iter(reader.get_next, None))
        np.testing.assert_allclose(np.concatenate([f["x"] for f in fed]), norm[::3][start:end], atol=1e-5)


def test_onnxruntime_feeds_pixels_to_an_input_of_uint8(digits, tools):
    reader = with_inputs(tools, ("x", [1, 32, 32, 1], "tensor(uint8)"))(digits, "model.onnx")
    found = reader.get_next()["x"]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0, :, :, 0], zsq.ShardDataset(digits).pixels()[0, 0].numpy())


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([("x", [8, 1, 32, 32], "tensor(float)")], {}, "batch of 1 or a free one"),
        ([("x", [1, 3, 32, 32], "tensor(float)")], {}, r"expected \(1, 1, 32, 32\) in either layout"),
        ([("x", [1, 1024], "tensor(float)")], {}, "in either layout"),
        ([("x", [1, 1, 32, 32], "tensor(int64)")], {}, r"tensor\(int64\)"),
        ([("x", [1, 1, 32, 32], "tensor(float)"), ("y", [1], "tensor(float)")], {}, "a model with x, y"),
        ([("x", [1, 1, 32, 32], "tensor(float)")], {"input_name": "z"}, "input z of a model with x"),
        ([("x", [1, 1, 32, 32], "tensor(float)")], {"stride": 0}, "stride 0"),
    ],
)
def test_onnxruntime_models_that_do_not_take_these_images(digits, tools, inputs, options, message):
    reader = with_inputs(tools, *inputs)
    with pytest.raises((MismatchError, OptionError), match=message):
        reader(digits, "model.onnx", **options)


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("nncf", "nncf", lambda images: nncf_dataset(images)),
        ("torchao", "torchao", lambda images: calibrate(torch.nn.Identity(), images)),
        ("model_compression_toolkit", "mct", lambda images: representative_data(images)),
        ("onnxruntime", "onnxruntime", lambda images: import_module("zsq.adapters").CalibrationReader),
    ],
)
def test_a_missing_tool_is_one_line_with_the_extra(digits, monkeypatch, module, extra, use):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "zsq.adapters.onnxruntime", raising=False)
    with pytest.raises(MissingExtraError, match=rf"is not installed.*pip install '\.\[{extra}\]'"):
        use(digits)
