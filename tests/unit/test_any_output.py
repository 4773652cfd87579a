"""From a card to images, a student and its files, for networks that return whatever they return."""

import numpy as np
import pytest
import torch
from commands import call
from torch import nn

import zsq
from zsq.core.errors import ImagesError
from zsq.tasks.nesting import named_tensors
from zsq.teacher import load_teacher

NETWORKS = """
from types import SimpleNamespace
import torch.nn.functional as F
from torch import nn

class Base(nn.Module):
    def __init__(self, outputs=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, outputs, 3, padding=1)

    def maps(self, x):
        return self.head(F.relu(self.bn(self.conv(x))))

    def logits(self, x):
        return self.maps(x).mean((2, 3))

class HFOut(Base):
    def forward(self, pixel_values=None, labels=None):
        return SimpleNamespace(logits=self.logits(pixel_values), loss=None)

class YoloCls(Base):
    def forward(self, x):
        y = self.logits(x)
        return y if self.training else (y.softmax(1), y)

class Any(Base):
    def forward(self, x):
        y = self.maps(x)
        return {"small": [y[..., ::2]], "large": y, "mean": x.mean()}

class SR(Base):
    def __init__(self):
        super().__init__(12)

    def forward(self, x):
        return F.pixel_shuffle(self.maps(x), 2)

class Seg(Base):
    def forward(self, x):
        return {"out": self.maps(x), "aux": None}

class Age(Base):
    def forward(self, x):
        return self.logits(x)[:, :1]

class Half(Base):
    def __init__(self):
        super().__init__()
        self.half()

    def forward(self, x):
        return self.logits(x.half()).float()
"""
CASES = {
    "HFOut": 'num_classes = 10\noutput = "logits"',
    "YoloCls": 'num_classes = 10\noutput = "1"',
    "Any": 'task = "other"',
    "SR": 'task = "image"',
    "Seg": 'task = "segment"\nnum_classes = 10\noutput = "out"',
    "Age": 'task = "regress"',
    "Half": "num_classes = 10",
}
IMAGE = "[image]\nsize = [12, 12]\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n"
SMALL = ("--threads", "1", "--compile", "off")


@pytest.fixture
def card(tmp_path):
    """Writes the card of a case beside its network and weights."""

    def write(name):
        (tmp_path / "networks.py").write_text(NETWORKS)
        torch.manual_seed(0)
        parts = nn.ModuleDict(
            {
                "conv": nn.Conv2d(3, 8, 3, bias=False),
                "bn": nn.BatchNorm2d(8),
                "head": nn.Conv2d(8, 12 if name == "SR" else 10, 3),
            }
        )
        torch.save(parts.state_dict(), tmp_path / "weights.pt")
        fields = f'architecture = "networks:{name}"\nweights = "weights.pt"\n{CASES[name]}\n'
        (tmp_path / "card.toml").write_text(fields + IMAGE)
        return f"file:{tmp_path / 'card.toml'}"

    return write


@pytest.mark.filterwarnings("ignore:.*float16")
@pytest.mark.parametrize("name", CASES)
def test_images_are_made_and_a_student_is_fitted_saved_and_loaded(card, tmp_path, capsys, name):
    teacher, folder, saved = card(name), tmp_path / "run", tmp_path / "student.safetensors"
    made = ("--method", "dgh", "--count", "4", "--iterations", "2", "--batch", "4", "--out", folder)
    assert call(capsys, "generate", "--teacher", teacher, *made, *SMALL).status == 0
    stores = load_teacher(teacher).task.stores_logits
    assert _has_logits(folder) == stores
    fit = ("--images", folder, "--student", "ptq", "--bits", "W8A8", "--out", saved)
    said = call(capsys, "quantize", "--teacher", teacher, *fit, *SMALL)
    assert said.status == 0 and "ptq W8A8, on images of the fit, " in said.out
    assert "sqnr centred" in said.out.splitlines()[-1]
    student, original = zsq.load_student(saved), load_teacher(teacher)
    assert student.task.name == original.task.name
    images = zsq.load_images(folder, original.spec).pixels
    with torch.no_grad():
        own, wanted = (m.logits(m.spec.pixels_to_standard(images)) for m in (student, original))
    for one, other in zip(_flat(own), _flat(wanted), strict=True):
        assert one.shape == other.shape
        assert (one - other).square().sum() < 1e-2 * other.square().sum()


@pytest.mark.parametrize(
    ("name", "targets", "lead"),
    [
        ("SR", np.full((4, 24, 24, 3), 128, np.uint8), "psnr"),
        ("Age", np.array([31, 7, 80, 45]), "r2"),
        ("Seg", np.arange(4 * 144, dtype=np.uint8).reshape(4, 12, 12) % 10, "miou"),
    ],
)
def test_targets_lead_a_gap(card, tmp_path, capsys, name, targets, lead):
    teacher, folder = card(name), tmp_path / "noise"
    images = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "eval.npz", images=images, targets=targets)
    zsq.generate(teacher, "noise", count=4, out=folder)
    source, out = str(tmp_path / "eval.npz"), tmp_path / "gap"
    data = zsq.measure_gap(teacher, [folder], source, source, ["ptq"], ["W4A4"], out, seeds=1)
    assert data.rows[0].metric == lead and data.teacher[lead] is not None
    unit = {"psnr": "dB of PSNR", "miou": "points of mean IoU", "r2": "points of R²"}[lead]
    assert unit in data.verdict and (out / "report.html").exists()
    labels = call(
        capsys,
        "quantize",
        *("--teacher", teacher, "--images", folder, "--student", "kd", "--bits", "W4A4"),
        *("--set", "iterations=1", "--eval", source, *SMALL),
    )
    assert f", {lead} " in labels.out.splitlines()[-1] and "(teacher " in labels.out.splitlines()[-1]


def test_what_needs_classes_refuses_in_one_line(card, tmp_path, capsys):
    teacher = card("SR")
    made = ("--method", "deepinversion", "--count", "2", "--out", tmp_path / "run")
    said = call(capsys, "generate", "--teacher", teacher, *made, *SMALL)
    assert said.status == 2 and "has task 'image', which has no classes" in said.complaint()
    for student in ("gdfq-ft", "quantface"):
        fit = ("--images", tmp_path / "eval.npz", "--student", student, "--bits", "W4A4")
        np.savez(tmp_path / "eval.npz", images=np.zeros((2, 12, 12, 3), np.uint8))
        said = call(capsys, "quantize", "--teacher", teacher, *fit, *SMALL)
        assert said.status == 2 and "has task 'image'" in said.complaint()


def _has_logits(folder):
    try:
        zsq.ShardDataset(folder, with_logits=True)
    except ImagesError:
        return False
    return True


def _flat(outputs):
    return [tensor for _, tensor in named_tensors(outputs)]
