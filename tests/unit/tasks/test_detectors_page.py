"""The modules of docs/detectors.md find what torchvision's own detectors find, with random weights."""

import re
import tomllib

import pytest
import torch
from commands import REPOSITORY
from torchvision.models import detection

from zsq.tasks.detect import Detect
from zsq.tasks.nesting import plain
from zsq.teacher.card import TeacherCard, card_module

PAGE = (REPOSITORY / "docs" / "detectors.md").read_text(encoding="utf-8")
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SSD = ([0.5] * 3, [0.5] * 3)
NETWORKS = {
    "RetinaNet": ("retinanet_resnet50_fpn_v2", IMAGENET, 0.0),
    "SSDlite": ("ssdlite320_mobilenet_v3_large", SSD, 0.5),
    "FasterRCNN": ("fasterrcnn_resnet50_fpn_v2", IMAGENET, 0.0),
}


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    found = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        (name,) = re.findall(r"^class (\w+)", block, re.MULTILINE)
        (folder / f"{name.lower()}.py").write_text(block)
        found[name] = card_module(name.lower(), folder)
    return found


def test_the_card_of_the_page_is_one():
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert TeacherCard(**tomllib.loads(text)).task == "detect"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_module_finds_what_torchvision_finds(name, modules):
    module = modules[name]
    network = getattr(module, name)().eval()
    builder, (mean, std), least = NETWORKS[name]
    sizes = {} if name == "SSDlite" else {"min_size": 320, "max_size": 320}
    if name == "RetinaNet":
        sizes["score_thresh"] = 0.0
    torch.manual_seed(0)
    reference = getattr(detection, builder)(weights=None, weights_backbone=None, **sizes).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in reference.parameters():
        if parameter.dim() > 1 and name != "FasterRCNN":
            fan = parameter[0].numel()
            torch.nn.init.normal_(parameter, std=(2 / fan) ** 0.5, generator=generator)
    network.load_state_dict(reference.state_dict())
    if name == "FasterRCNN":
        for each in (network, reference):
            each.rpn._post_nms_top_n = {"training": 20, "testing": 20}
    image = torch.rand(1, 3, 320, 320, generator=generator)
    with torch.no_grad():
        outputs = plain(
            network((image - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1))
        )
        expected = reference(list(image))[0]
    task = Detect(decode=module.decode, dense=getattr(module, "dense", None)).settled(outputs)
    (found,) = task.found(outputs, 1)
    count = int((found["scores"] > max(least, found["scores"][9].item())).sum())
    assert count > 0
    for part, values in found.items():
        assert torch.allclose(values[:count], expected[part][:count], atol=1e-3), part
    if task.dense is not None:
        boxes, scores = task.dense(outputs)
        assert scores.shape[-1] == 91 and boxes.shape[1] == scores.shape[1]
