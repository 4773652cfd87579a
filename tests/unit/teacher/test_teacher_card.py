"""Teacher cards: every field, where modules and weights are found, and every refusal."""

import sys
from pathlib import Path

import pytest
import torch
import torchvision

from zsq.core.errors import MismatchError, UsageError, WeightsError
from zsq.core.photofit import PhotoFit
from zsq.teacher import load_teacher
from zsq.teacher.card import read_card

# What every card here says of its weights; test_unwrap.py asserts such lines.
pytestmark = pytest.mark.filterwarnings("ignore:.*net.pt. entry 'state_dict' is taken")

ARCHITECTURE = """
import torch
from torch import nn
from neighbour import HIDDEN

class Net(nn.Module):
    def __init__(self, outputs=5, hidden=HIDDEN):
        super().__init__()
        self.conv = nn.Conv2d(3, hidden, 3)
        self.linear = nn.Linear(hidden, outputs)
    def forward(self, x):
        assert x.shape[-1] == 12, "12 px only"
        return self.linear(self.conv(x).mean((2, 3)))

def numbers():
    return 7

def leave(**arguments):
    raise SystemExit


def broken():
    raise ZeroDivisionError("oh")
"""
CARD = """
architecture = "my_net:Net"
arguments = {outputs = 5}
weights = "sub/net.pt"
num_classes = 5
expected_accuracy = 71.5

[image]
size = [6, 6]
input_size = [12, 12]
mean = [0.1, 0.2, 0.3]
std = [0.2, 0.25, 0.3]
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "cards"
    (folder / "sub").mkdir(parents=True)
    (folder / "my_net.py").write_text(ARCHITECTURE)
    (folder / "neighbour.py").write_text("HIDDEN = 4\n")
    (folder / "card.toml").write_text(CARD)
    torch.manual_seed(0)
    torch.save(
        {"state_dict": {"module." + n: t for n, t in fresh_state().items()}}, folder / "sub" / "net.pt"
    )
    yield folder
    sys.modules.pop("neighbour", None)


def fresh_state(outputs: int = 5) -> dict[str, torch.Tensor]:
    return {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "conv.bias": torch.randn(4),
        "linear.weight": torch.randn(outputs, 4),
        "linear.bias": torch.randn(outputs),
    }


def write_card(folder: Path, old: str = "", new: str = "") -> str:
    assert old in CARD
    (folder / "card.toml").write_text(CARD.replace(old, new))
    return f"file:{folder / 'card.toml'}"


def test_card_makes_a_teacher(folder):
    name = write_card(folder)
    teacher = load_teacher(name)
    assert (teacher.name, teacher.num_classes, teacher.expected_accuracy) == (name, 5, 71.5)
    assert (teacher.spec.size, teacher.spec.input_size) == ((6, 6), (12, 12))
    assert not teacher.network.training
    assert not any(p.requires_grad for p in teacher.network.parameters())
    state = torch.load(folder / "sub" / "net.pt", weights_only=True)["state_dict"]
    images = torch.randn(2, 3, 6, 6)
    large = torch.nn.functional.interpolate(images, (12, 12), mode="bilinear")
    hidden = torch.nn.functional.conv2d(large, state["module.conv.weight"], state["module.conv.bias"]).mean(
        (2, 3)
    )
    wanted = hidden @ state["module.linear.weight"].T + state["module.linear.bias"]
    assert torch.allclose(teacher.logits(images), wanted, atol=1e-5)


def test_import_leaves_no_trace_in_path_names_or_random_state(folder):
    name = write_card(folder)
    path, random_state = list(sys.path), torch.get_rng_state()
    load_teacher(name)
    assert sys.path == path
    assert torch.equal(torch.get_rng_state(), random_state)
    assert "my_net" not in sys.modules


def test_two_cards_with_modules_of_the_same_name(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "my_net.py").write_text(ARCHITECTURE.replace("from neighbour import HIDDEN", "HIDDEN = 3"))
    (other / "card.toml").write_text(CARD)
    assert load_teacher(write_card(folder)).network.conv.out_channels == 4
    with pytest.raises(MismatchError, match=r"'conv.weight' is 4x3x3x3; expected shape 3x3x3x3"):
        load_teacher(f"file:{other / 'card.toml'}", folder / "sub" / "net.pt")


def test_weights_argument_replaces_the_cards(folder, tmp_path):
    state = fresh_state()
    torch.save(state, tmp_path / "mine.pt")
    teacher = load_teacher(write_card(folder, 'weights = "sub/net.pt"'), tmp_path / "mine.pt")
    assert torch.equal(teacher.network.linear.bias, state["linear.bias"])


def test_weights_key_chooses_an_entry(folder):
    first, second = fresh_state(), fresh_state()
    torch.save({"model": first, "ema": {"module": second}}, folder / "sub" / "net.pt")
    with pytest.warns(
        UserWarning, match=r"net.pt: entry 'ema.module' is taken; 'model' would fit too.*weights_key"
    ):
        teacher = load_teacher(write_card(folder))
    assert torch.equal(teacher.network.linear.bias, second["linear.bias"])
    name = write_card(folder, "num_classes = 5", 'num_classes = 5\nweights_key = "model"')
    with pytest.warns(UserWarning, match=r"net.pt: entry 'model' is taken$"):
        teacher = load_teacher(name)
    assert torch.equal(teacher.network.linear.bias, first["linear.bias"])
    torch.save(first, folder / "plain.pt")
    with pytest.raises(MismatchError, match=r"plain.pt has no entry 'model'.*correct weights_key"):
        load_teacher(name, folder / "plain.pt")


def test_no_weights_anywhere(folder):
    with pytest.raises(UsageError, match=r"names no weights.*--weights FILE"):
        load_teacher(write_card(folder, 'weights = "sub/net.pt"'))


def test_embedding_network(folder):
    name = write_card(folder, "num_classes = 5", 'task = "embed"\nembedding_size = 5')
    teacher = load_teacher(name)
    assert (teacher.task.name, teacher.num_classes, teacher.num_outputs) == ("embed", None, 5)


def test_variables_are_expanded_in_cards_and_names(folder, monkeypatch):
    write_card(folder, '"sub/net.pt"', '"${MY_FOLDER}/net.pt"')
    monkeypatch.setenv("MY_FOLDER", str(folder / "sub"))
    monkeypatch.setenv("MY_CARDS", str(folder))
    assert load_teacher("file:${MY_CARDS}/card.toml").name == "file:${MY_CARDS}/card.toml"
    monkeypatch.delenv("MY_FOLDER")
    with pytest.raises(UsageError, match=r"card.toml: \$\{MY_FOLDER\} is not set"):
        load_teacher("file:${MY_CARDS}/card.toml")


def test_importable_module(folder, tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=5).eval()
    torch.save(network.state_dict(), tmp_path / "net.pt")
    name = write_card(
        folder,
        'my_net:Net"\narguments = {outputs = 5}',
        'torchvision.models:shufflenet_v2_x0_5"\narguments = {num_classes = 5}',
    )
    teacher = load_teacher(name, tmp_path / "net.pt")
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(teacher.network(images), network(images))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_classes = 5", "num_classes = 5\ncolour = 1", "colour: no such key"),
        (
            "num_classes = 5",
            'num_classes = 5\nweights_key = ""',
            "weights_key: String should have at least 1",
        ),
        (
            "num_classes = 5",
            "num_classes = 5\nweights_key = 3",
            "weights_key: Input should be a valid string",
        ),
        ("size = [6, 6]", "size = [6, 6]\nsharpness = 1", "image.sharpness: no such key"),
        ("num_classes = 5", "", "task 'classify' needs num_classes and no embedding_size"),
        ("num_classes = 5", "num_classes = 5\nembedding_size = 5", "needs num_classes and no embedding_size"),
        ("num_classes = 5", 'task = "embed"\nnum_classes = 5', "needs embedding_size and no num_classes"),
        (
            "num_classes = 5",
            'num_classes = 5\ntask = "other"',
            "task 'other' needs no num_classes or",
        ),
        ("num_classes = 5", 'num_classes = 5\ntask = "speak"', "task: .*one of classify, embed, image, seg"),
        ("num_classes = 5", 'num_classes = 5\nclasses = ["a", "b"]', "classes lists 2 .*num_classes = 5"),
        ("num_classes = 5", 'num_classes = 5\nclasses = ["a", "b", "c", "a", "e"]', "classes lists 4"),
        ("num_classes = 5", 'num_classes = 5\nfit = "squeeze"', "fit: Input should be 'refuse', 'crop' or"),
        ("num_classes = 5", "num_classes = 5\nresize = 5", "resize is for fit = 'crop' and 6 px or more"),
        ("num_classes = 5", 'num_classes = 5\nresize = 8\nfit = "stretch"', "resize is for fit = 'crop'"),
        ("size = [6, 6]", "", "image.size: Field required"),
        ("size = [6, 6]", "size = 6", r"image.size: 6 is not \[height, width\]"),
        ("size = [6, 6]", "sise = [6, 6]", "image.size: Field required|did you mean 'size'"),
        ("num_classes = 5", "num_clases = 5", "num_clases: no such key; did you mean 'num_classes'?"),
        ("size = [6, 6]", "size = [0, 6]", "image.size.0: Input should be greater than 0"),
        ("mean = [0.1, 0.2, 0.3]", "mean = [0.1]", "image: .*mean has 1 values for 3 channels"),
        (
            "mean = [0.1, 0.2, 0.3]",
            "mean = [123.675, 116.28, 103.53]",
            r"image: .*mean 123\.675 is too large.* divide them by 255: mean 0\.485",
        ),
        (
            "expected_accuracy = 71.5",
            "expected_accuracy = 171",
            "expected_accuracy: .*less than or equal to 100",
        ),
        ("my_net:Net", "my_net", "architecture: String should match"),
        ("my_net:Net", "../my_net:Net", "architecture: String should match"),
        ("num_classes = 5", "num_classes = ", "is not TOML"),
    ],
)
def test_a_wrong_field_is_named(folder, old, new, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_teacher(write_card(folder, old, new))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "my_net:Net",
            "no_such_module:Net",
            r"failed with ModuleNotFoundError.*importing it runs its Python",
        ),
        ("my_net:Net", "my_net:Nut", "AttributeError: module 'my_net' has no attribute 'Nut'; expected"),
        ("my_net:Net", "my_net:broken", "failed with TypeError"),
        (
            'my_net:Net"\narguments = {outputs = 5}',
            'my_net:broken"',
            r"failed with ZeroDivisionError at my_net\.py:\d+ `.*`: oh",
        ),
        (
            'my_net:Net"\narguments = {outputs = 5}',
            'my_net:numbers"',
            "made a int; expected a torch nn.Module",
        ),
        ("outputs = 5", "width = 5", "failed with TypeError.*width"),
        ('my_net:Net"', 'my_net:leave"', "failed with SystemExit"),
    ],
)
def test_an_architecture_that_fails_is_one_line(folder, old, new, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_teacher(write_card(folder, old, new))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "num_classes = 5",
            "num_classes = 6",
            r"returns a tensor \(1, 5\) .*num_classes = 6",
        ),
        (
            "input_size = [12, 12]",
            "input_size = [13, 13]",
            r"failed on a 3x6x6 image with AssertionError at my_net\.py:\d+ `assert.*`: 12 px",
        ),
        ("outputs = 5", "outputs = 4", "'linear.weight' is 5x4; expected shape 4x4"),
    ],
)
def test_card_network_and_weights_must_agree(folder, old, new, message):
    with pytest.raises(MismatchError, match=message):
        load_teacher(write_card(folder, old, new))


def test_missing_files(folder):
    with pytest.raises(UsageError, match=r"nowhere.toml cannot be read \(No such file"):
        load_teacher("file:nowhere.toml")
    with pytest.raises(WeightsError, match=r"none.pt: No such file"):
        load_teacher(write_card(folder, "sub/net.pt", "none.pt"))


def test_unreadable_card(folder):
    (folder / "card.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not TOML"):
        read_card(folder / "card.toml")


def test_a_card_says_its_classes_and_how_photos_are_fitted(folder):
    teacher = load_teacher(write_card(folder))
    assert teacher.classes is None and teacher.photo_fit == PhotoFit(how="crop")
    fields = 'num_classes = 5\nclasses = ["a", "b", "c", "d", "e"]\nresize = 8'
    teacher = load_teacher(write_card(folder, "num_classes = 5", fields))
    assert teacher.classes == ("a", "b", "c", "d", "e") and teacher.photo_fit == PhotoFit(resize=8)
    teacher = load_teacher(write_card(folder, "num_classes = 5", 'num_classes = 5\nfit = "stretch"'))
    assert teacher.photo_fit == PhotoFit(how="stretch")
