"""torchvision teachers: local files, published names, the download folder, and no network."""

import hashlib
import re

import pytest
import torch
import torchvision

from zsq.core.errors import DownloadError, MismatchError
from zsq.core.photofit import PhotoFit
from zsq.teacher import load_teacher
from zsq.teacher.torchvision_models import _arguments, _default_weights_path, load_torchvision_teacher


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return tmp_path / "hub" / "hub" / "checkpoints"


def save_model(path, name: str, rename=lambda key: key, **arguments):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **arguments).eval()
    torch.save({rename(key): tensor for key, tensor in model.state_dict().items()}, path)
    return model


def test_local_resnet18(tmp_path):
    path = tmp_path / "resnet18.pt"
    model = save_model(path, "resnet18")
    teacher = load_teacher("resnet18", path)
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(teacher.logits(images), model(images))
    assert (teacher.num_classes, teacher.spec.shape) == (1000, (3, 224, 224))
    assert (teacher.spec.mean, teacher.spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert teacher.spec.input_size is None
    assert teacher.photo_fit == PhotoFit(resize=256)
    assert teacher.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not teacher.network.training


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"])
def test_number_of_classes_follows_from_the_file(tmp_path, name):
    model = save_model(tmp_path / "net.pt", name, num_classes=7)
    teacher = load_teacher(name, tmp_path / "net.pt")
    images = torch.randn(1, 3, 224, 224)
    assert teacher.num_classes == 7
    assert torch.equal(teacher.logits(images), model(images))


def test_published_densenet_names(tmp_path):
    def published(key):
        return re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key)

    model = save_model(tmp_path / "net.pt", "densenet121", rename=published)
    assert "features.denseblock1.denselayer1.norm.1.weight" in torch.load(
        tmp_path / "net.pt", weights_only=True
    )
    teacher = load_teacher("densenet121", tmp_path / "net.pt")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(teacher.network(images), model(images))


@pytest.mark.parametrize("aux_in_file", [True, False])
def test_googlenet_is_without_auxiliary_heads(tmp_path, aux_in_file):
    model = save_model(
        tmp_path / "net.pt", "googlenet", aux_logits=aux_in_file, init_weights=False, transform_input=True
    )
    teacher = load_teacher("googlenet", tmp_path / "net.pt")
    images = torch.randn(1, 3, 224, 224)
    outputs = teacher.logits(images)
    assert torch.allclose(outputs, model(images), atol=1e-6)
    assert not any(name.startswith("aux") and p.numel() for name, p in teacher.network.named_parameters())


def test_published_sizes_and_arguments():
    sizes = {"efficientnet_b1": 240, "inception_v3": 299, "swin_v2_t": 256, "vit_b_16": 224, "vit_h_14": 518}
    for name, side in sizes.items():
        default = torchvision.models.get_model_weights(name).DEFAULT
        assert default.transforms().crop_size == [side]
        assert _arguments(name, default.meta).get("image_size", side) == side


def test_weights_of_another_architecture(tmp_path):
    save_model(tmp_path / "net.pt", "squeezenet1_1")
    with pytest.raises(MismatchError, match=r"net.pt for shufflenet_v2_x0_5 has no 'conv1.0.weight'"):
        load_teacher("shufflenet_v2_x0_5", tmp_path / "net.pt")


def test_without_network_one_line_names_url_hash_and_option(hub):
    with pytest.raises(DownloadError) as caught:
        load_teacher("resnet18")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert "sha256 starts with f37072fd" in message and "--weights FILE" in message
    assert "\n" not in message and caught.value.exit_code == 1
    assert not list(hub.glob("*"))


def test_download_is_checked_and_kept(tmp_path, hub):
    content = b"weights" * 1000
    digest = hashlib.sha256(content).hexdigest()
    source = tmp_path / f"net-{digest[:8]}.pth"
    source.write_bytes(content)
    kept = _default_weights_path("net", source.as_uri())
    assert kept == hub / source.name and kept.read_bytes() == content
    source.unlink()
    assert _default_weights_path("net", source.as_uri()) == kept
    kept.write_bytes(content + b"!")
    with pytest.raises(DownloadError, match=r"is not what file:.*delete it and try again"):
        _default_weights_path("net", source.as_uri())


def test_download_with_another_hash_is_not_kept(tmp_path, hub):
    source = tmp_path / "net-00000000.pth"
    source.write_bytes(b"other")
    with pytest.raises(DownloadError, match=r"invalid hash value.*sha256 starts with 00000000"):
        _default_weights_path("net", source.as_uri())
    assert not list(hub.glob("*"))


def test_default_weights_are_loaded_from_the_folder(tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    model = save_model(path, "squeezenet1_1")
    monkeypatch.setattr(
        "zsq.teacher.torchvision_models._default_weights_path", lambda name, url, offline: path
    )
    teacher = load_torchvision_teacher("squeezenet1_1")
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(teacher.logits(images), model(images))
