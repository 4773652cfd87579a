"""Hugging Face teachers: folders as transformers saves them, what strangers put into them, and no network."""

import hashlib
import json
import sys

import pytest
import torch

from zsq.core.errors import MissingExtraError, UsageError, WeightsError
from zsq.core.photofit import PhotoFit
from zsq.teacher import load_teacher

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def save_vit(folder, num_labels=5, side=32, channels=3, **others):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        **VIT, image_size=side, patch_size=8, num_channels=channels, num_labels=num_labels, **others
    )
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture
def vit(tmp_path):
    """A folder with a model and its preprocessing, and the model."""
    model = save_vit(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit", model


def edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_folder(vit):
    folder, model = vit
    teacher = load_teacher(f"hf:{folder}")
    images = torch.randn(2, 3, 32, 32)
    expected = model(images).logits
    assert teacher.network(images).allclose(expected, atol=1e-6)
    assert (teacher.num_classes, teacher.spec.shape, teacher.classes) == (5, (3, 32, 32), None)
    assert (teacher.spec.mean, teacher.spec.std) == ((0.5,) * 3, (0.5,) * 3)
    assert teacher.photo_fit == PhotoFit(how="stretch", interpolation="bilinear")
    content = (folder / "model.safetensors").read_bytes()
    assert teacher.weights_sha256 == hashlib.sha256(content).hexdigest()
    assert list(teacher.network.state_dict()) == list(model.state_dict())
    assert isinstance(teacher.network, transformers.ViTForImageClassification)


def test_a_convolutional_network_with_names_of_classes(tmp_path, monkeypatch):
    torch.manual_seed(0)
    names = {0: "cat", 1: "dog", 2: "horse"}
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**RESNET, id2label=names))
    for buffer in (each for name, each in model.named_buffers() if "running" in name):
        buffer.uniform_(0.5, 1.5)
    model.eval().save_pretrained(tmp_path / "net")
    processor = transformers.ConvNextImageProcessor(
        size={"shortest_edge": 64}, crop_pct=0.8, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    )
    processor.save_pretrained(tmp_path / "net")
    monkeypatch.setenv("MODELS", str(tmp_path))
    teacher = load_teacher("hf:${MODELS}/net")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(teacher.network(images), model(images).logits)
    assert teacher.classes == ("cat", "dog", "horse")
    assert (teacher.spec.mean, teacher.spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert teacher.photo_fit == PhotoFit(resize=80, interpolation="bicubic")


@pytest.mark.parametrize(
    ("fields", "mean", "std", "order"),
    [
        ({"do_normalize": False}, (0.0,) * 3, (1.0,) * 3, "rgb"),
        ({"do_rescale": False, "do_normalize": False}, (0.0,) * 3, (0.00392157,) * 3, "rgb"),
        ({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}, None, None, "rgb"),
        (
            {
                "image_processor_type": "EfficientNetImageProcessor",
                "include_top": True,
                "image_std": [0.5] * 3,
            },
            (0.5,) * 3,
            (0.25,) * 3,
            "rgb",
        ),
        (
            {
                "image_processor_type": "MobileViTImageProcessor",
                "size": {"shortest_edge": 36},
                "crop_size": {"height": 32, "width": 32},
            },
            (0.0,) * 3,
            (1.0,) * 3,
            "bgr",
        ),
    ],
)
def test_values_of_the_preprocessing(vit, fields, mean, std, order):
    folder, _ = vit
    edit(folder / "preprocessor_config.json", **fields)
    spec = load_teacher(f"hf:{folder}").spec
    assert spec.mean == (mean or tuple(fields["image_mean"]))
    assert spec.std == (std or tuple(fields["image_std"]))
    assert (spec.channel_order, spec.size) == (order, (32, 32))


@pytest.mark.parametrize(
    ("kind", "fields", "fit"),
    [
        ("BitImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}, 40),
        (
            "LevitImageProcessor",
            {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
            36,
        ),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.5}, 64),
        ("ViTImageProcessor", {"size": {"height": 32, "width": 32}}, "stretch"),
    ],
)
def test_photos_are_fitted_as_the_preprocessing_does(vit, kind, fields, fit):
    folder, _ = vit
    edit(folder / "preprocessor_config.json", image_processor_type=kind, **fields)
    found = load_teacher(f"hf:{folder}").photo_fit
    assert (found.resize or found.how) == fit


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"do_resize": False}, "makes images of no fixed size"),
        ({"size": {"height": 10**5, "width": 10**5}}, "sizes over 2048 px"),
        ({"size": 10**9}, "sizes over 2048 px"),
        ({"crop_pct": 1e-9}, "crop_pct 1e-09"),
        ({"size": {"height": 40, "width": 40}}, "failed on a 3x40x40 image"),
        ({"image_mean": [123.0] * 3, "image_std": [58.0] * 3, "do_rescale": False}, None),
        ({"image_mean": [123.0] * 3, "image_std": [58.0] * 3}, "pixels 0..1"),
        ({"image_std": [-0.5] * 3}, "does not keep the order of values"),
        ({"image_processor_type": "NoSuchImageProcessor"}, "its preprocessing fails"),
        ({"auto_map": {"AutoImageProcessor": "code.Mine"}}, "names code of its own"),
    ],
)
def test_unusual_preprocessing(vit, fields, said):
    folder, _ = vit
    edit(folder / "preprocessor_config.json", **fields)
    if said is None:
        assert load_teacher(f"hf:{folder}").spec.mean == (0.482353,) * 3
        return
    with pytest.raises((UsageError, WeightsError), match=said):
        load_teacher(f"hf:{folder}")


def test_without_preprocessing_the_usual_one_holds_and_a_warning_says_so(tmp_path):
    save_vit(tmp_path / "vit", side=40)
    with pytest.warns(UserWarning, match=r"no preprocessor_config.json: 40 px, mean and std are vit's usual"):
        teacher = load_teacher(f"hf:{tmp_path / 'vit'}")
    assert (teacher.spec.size, teacher.spec.mean) == ((40, 40), (0.5, 0.5, 0.5))


def test_grey_images(tmp_path):
    save_vit(tmp_path / "vit", channels=1)
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.2], image_std=[0.3]
    )
    processor.save_pretrained(tmp_path / "vit")
    spec = load_teacher(f"hf:{tmp_path / 'vit'}").spec
    assert (spec.shape, spec.mean, spec.std) == ((1, 32, 32), (0.2,), (0.3,))


def test_weights_of_a_file_and_their_number_of_classes(vit, tmp_path):
    folder, _ = vit
    model = save_vit(tmp_path / "other", num_labels=9)
    torch.save(model.state_dict(), tmp_path / "net.pt")
    images = torch.randn(2, 3, 32, 32)
    for path in (tmp_path / "net.pt", tmp_path / "other" / "model.safetensors"):
        teacher = load_teacher(f"hf:{folder}", path)
        assert teacher.num_classes == 9
        assert teacher.network(images).allclose(model(images).logits, atol=1e-6)


def test_half_weights_are_read_as_float32(vit):
    folder, model = vit
    model.half().save_pretrained(folder)
    with pytest.warns(UserWarning, match="float16 weights are read as float32"):
        teacher = load_teacher(f"hf:{folder}")
    assert {tensor.dtype for tensor in teacher.network.parameters()} == {torch.float32}


def test_pickled_weights_alone_are_refused(vit):
    folder, model = vit
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pickled weights alone \(pytorch_model.bin\)"):
        load_teacher(f"hf:{folder}")


def test_weights_in_several_files_are_refused(vit):
    folder, _ = vit
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="its weights in several files"):
        load_teacher(f"hf:{folder}")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"auto_map": {"AutoModelForImageClassification": "code.Mine"}}, "names code of its own"),
        ({"backbone_config": {"auto_map": {"AutoModel": "code.Mine"}}}, "names code of its own"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized already"),
        ({"use_pretrained_backbone": True}, "weights of another repository"),
        ({"model_type": "timm_wrapper", "architecture": "resnet18"}, "a network of timm, resnet18"),
        ({"model_type": "bert"}, "an image classifier of transformers"),
        ({"model_type": "nothing"}, "no configuration that transformers"),
        ({"model_type": 3}, "no model_type"),
        ({"hidden_size": "wide"}, "vit: "),
        ({"hidden_size": 2**14, "num_attention_heads": 1}, "config.json describes"),
        ({"hidden_size": 24}, "mismatched keys"),
        ({"num_hidden_layers": 3}, "missing keys"),
        ({"num_hidden_layers": 10**9}, "more than 1000 modules"),
        ({"num_hidden_layers": 1}, "unexpected keys"),
    ],
)
def test_what_strangers_write_is_one_line(vit, fields, said, monkeypatch):
    folder, _ = vit
    monkeypatch.setattr("zsq.teacher.hf_models._MOST_MODULES", 1000)
    edit(folder / "config.json", **fields)
    (folder / "code.py").write_text("raise SystemExit('code of the folder ran')")
    with pytest.raises((UsageError, WeightsError), match=said) as caught:
        load_teacher(f"hf:{folder}")
    assert "\n" not in str(caught.value)


def test_names_of_kernels_on_the_hub_are_dropped(vit):
    folder, _ = vit
    edit(
        folder / "config.json", attn_implementation="kernels-community/x", _attn_implementation_internal="y/z"
    )
    config = load_teacher(f"hf:{folder}").network.config
    assert config._attn_implementation == "eager"


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_configuration(vit, content):
    folder, _ = vit
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"config.json (is no JSON|holds a list)"):
        load_teacher(f"hf:{folder}")


def test_values_that_are_not_finite(vit):
    folder, model = vit
    with torch.no_grad():
        model.classifier.weight[0, 0] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(WeightsError, match="holds NaN or infinity"):
        load_teacher(f"hf:{folder}")


@pytest.mark.parametrize("name", ["hf:", "hf:../nothing", "hf:/nothing", "hf:a/b/c", "hf:a b"])
def test_names_that_lead_nowhere(name):
    with pytest.raises(UsageError, match="hf:FOLDER that is there"):
        load_teacher(name)


def test_a_download_is_said_and_takes_no_code(vit, monkeypatch):
    folder, model = vit
    asked = []

    def download(repository, allow_patterns, local_files_only=False):
        if local_files_only:
            raise OSError("nothing")
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.warns(UserWarning, match="downloaded from https://huggingface.co/someone/vit"):
        teacher = load_teacher("hf:someone/vit")
    assert teacher.name == "hf:someone/vit"
    assert asked == ["config.json", "model.safetensors", "preprocessor_config.json"]
    images = torch.randn(2, 3, 32, 32)
    assert teacher.network(images).allclose(model(images).logits, atol=1e-6)


def test_without_transformers_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"transformers is not installed.*pip install '\.\[hf\]'"):
        load_teacher("hf:someone/vit")


def test_loading_leaves_the_global_random_state(vit):
    before = torch.get_rng_state()
    load_teacher(f"hf:{vit[0]}")
    assert torch.equal(torch.get_rng_state(), before)
