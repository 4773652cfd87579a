"""timm teachers: local files, names of earlier versions, the hub's cache, and no network."""

import hashlib
import re
import sys

import pytest
import torch
from safetensors.torch import save_file

from zsq.core.errors import DownloadError, MismatchError, MissingExtraError, UsageError, WeightsError
from zsq.core.photofit import PhotoFit
from zsq.teacher import load_teacher

timm = pytest.importorskip("timm")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache"


def save_model(path, name, **arguments):
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    torch.save(model.state_dict(), path)
    return model


def in_cache(cache, repository):
    """A repository as the hub's package keeps it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    revision = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    (folder / "snapshots" / revision).mkdir(parents=True)
    return folder / "snapshots" / revision


@pytest.mark.parametrize("num_classes", [1000, 7])
def test_a_local_file(tmp_path, num_classes):
    path = tmp_path / "net.pt"
    model = save_model(path, "test_resnet", num_classes=num_classes)
    teacher = load_teacher("timm:test_resnet", path)
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(teacher.network(images), model(images))
    assert (teacher.num_classes, teacher.spec.shape, teacher.task.name) == (
        num_classes,
        (3, 160, 160),
        "classify",
    )
    assert teacher.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(teacher.network.state_dict()) == list(model.state_dict())
    assert not teacher.network.training


def test_images_are_those_of_its_configuration(tmp_path):
    config = timm.get_pretrained_cfg("test_vit")
    save_model(tmp_path / "net.pt", "test_vit")
    teacher = load_teacher("timm:test_vit", tmp_path / "net.pt")
    assert (teacher.spec.mean, teacher.spec.std) == (config.mean, config.std)
    assert teacher.photo_fit == PhotoFit(resize=int(160 / config.crop_pct), interpolation="bicubic")


def test_fixed_and_stretched_sizes():
    from zsq.teacher.timm_models import _image_spec, _photo_fit

    data = {"input_size": (3, 1024, 768), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    assert _image_spec(data).size == (1024, 768)
    assert _photo_fit({**data, "crop_mode": "center", "crop_pct": 0.96}).resize == 800
    assert _photo_fit({**data, "crop_mode": "squash", "crop_pct": 1.0}).how == "stretch"
    grey = _image_spec({**data, "input_size": (1, 28, 28), "mean": (0.1,), "std": (0.3,)})
    assert (grey.channels, grey.mean, grey.std) == (1, (0.1,), (0.3,))


def test_a_network_without_classes_is_an_embedder(tmp_path):
    name = "vit_small_patch16_dinov3"
    assert timm.get_pretrained_cfg(name).num_classes == 0
    model = save_model(tmp_path / "net.pt", name)
    teacher = load_teacher(f"timm:{name}", tmp_path / "net.pt")
    assert (teacher.task.name, teacher.num_outputs, teacher.num_classes) == (
        "embed",
        model.num_features,
        None,
    )


def _first_name(name):
    name = name.replace("head.fc.", "head.")
    return re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)


def test_names_that_timm_knows_from_before(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=1000).eval()
    state = model.state_dict()
    # As files of the first Swin are: the end of a stage, and a table that is computed now.
    state = {_first_name(name): tensor for name, tensor in state.items()}
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "net.safetensors")
    teacher = load_teacher("timm:swin_tiny_patch4_window7_224", tmp_path / "net.safetensors")
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(teacher.network(images), model(images))


def test_weights_of_another_architecture(tmp_path):
    save_model(tmp_path / "net.pt", "test_vit")
    with pytest.raises(MismatchError, match=r"net.pt for timm:test_resnet has no 'conv1"):
        load_teacher("timm:test_resnet", tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet18x", r"unknown teacher.*`zsq list timm`; did you mean 'timm:resnet18"),
        ("timm:", "unknown teacher 'timm:'"),
        ("timm:resnet18.nothing", r"no weights 'nothing' of resnet18; expected one of .*a1_in1k"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "looks like a path"),
        ("timm:local-dir:net", "unknown teacher"),
        ("timm:hf-hub:resnet18", "unknown teacher"),
    ],
)
def test_unknown_names(name, said):
    with pytest.raises(UsageError, match=said):
        load_teacher(name)


def test_default_weights_are_loaded_from_the_cache(tmp_path, cache):
    model = save_model(tmp_path / "net.pt", "test_resnet")
    repository = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    folder = in_cache(cache, repository)
    save_file(model.state_dict(), folder / "model.safetensors")
    teacher = load_teacher("timm:test_resnet", offline=True)
    images = torch.randn(1, 3, 160, 160)
    assert torch.equal(teacher.network(images), model(images))


def test_a_download_is_said_and_takes_safetensors_alone(tmp_path, monkeypatch):
    asked = []

    def download(repository, allow_patterns, local_files_only=False):
        if local_files_only:
            raise OSError("nothing")
        asked.append((repository, allow_patterns))
        folder = tmp_path / "repository"
        folder.mkdir()
        (folder / "pytorch_model.bin").write_bytes(b"pickle")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    url = "https://huggingface.co/timm/resnet18.a1_in1k"
    with (
        pytest.warns(UserWarning, match=f"timm/resnet18.a1_in1k are downloaded from {url}"),
        pytest.raises(WeightsError, match=r"pickled weights alone \(pytorch_model.bin\)"),
    ):
        load_teacher("timm:resnet18.a1_in1k")
    assert asked == [("timm/resnet18.a1_in1k", ["model.safetensors"])]


def test_weights_that_are_pickled_alone():
    assert timm.get_pretrained_cfg("gcvit_tiny").hf_hub_id is None
    with pytest.raises(WeightsError, match=r"gcvit_tiny has pickled weights alone; .*--weights FILE"):
        load_teacher("timm:gcvit_tiny")


def test_without_network_one_line_names_the_repository():
    with pytest.warns(UserWarning), pytest.raises(DownloadError, match="could not be fetched") as caught:
        load_teacher("timm:resnet18.a1_in1k")
    assert "https://huggingface.co/timm/resnet18.a1_in1k" in str(caught.value)
    assert "--weights FILE" in str(caught.value)


def test_without_timm_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"timm is not installed.*pip install '\.\[timm\]'"):
        load_teacher("timm:resnet18")


def test_loading_leaves_the_global_random_state(tmp_path):
    save_model(tmp_path / "net.pt", "test_resnet")
    before = torch.get_rng_state()
    load_teacher("timm:test_resnet", tmp_path / "net.pt")
    assert torch.equal(torch.get_rng_state(), before)
