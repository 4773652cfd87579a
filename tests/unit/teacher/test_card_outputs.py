"""Networks of other signatures and outputs: one front, and one line where none fits."""

import copy
import dataclasses
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zsq.core.errors import MismatchError, UsageError
from zsq.core.imagespec import ImageSpec
from zsq.core.layout import channels_last, maps_channels_last
from zsq.graph.capture import capture
from zsq.tasks import TASKS
from zsq.tasks.nesting import named_tensors
from zsq.teacher import load_teacher
from zsq.teacher.outputs import ByReshape, made_float, settle

SPEC = ImageSpec(size=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    hidden: None = None


class Net(nn.Module):
    """Logits (N, 5) of images, returned as `kind` says."""

    def __init__(self, kind="plain", classes=5):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6, classes)

    def logits(self, x):
        return self.head(F.relu(self.conv(x)).mean((2, 3)))

    def forward(self, x):
        y = self.logits(x)
        return {
            "plain": lambda: y,
            "object": lambda: SimpleNamespace(logits=y),
            "dataclass": lambda: Result(y),
            "tuple": lambda: (y, x.mean()),
            "nested": lambda: {"heads": [{"aux": x.mean((2, 3))}, {"main": y}], "maps": self.conv(x)},
            "both": lambda: (y.softmax(1), y),
            "softmax": lambda: y.softmax(1),
            "log_softmax": lambda: y.log_softmax(1),
        }[self.kind]()


class Optional(Net):
    def forward(self, x, mask=None, *, scale=1.0):
        return self.logits(x if mask is None else x * mask) * scale


class ByName(Net):
    def forward(self, *, images, mask=None):
        return self.logits(images if mask is None else images * mask)


class TwoImages(Net):
    def forward(self, x, other):
        return self.logits(x + other)


class HalfInside(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.net = Net().to(dtype)

    def forward(self, x):
        return self.net(x.half() if self.dtype == torch.float16 else x.to(dtype=torch.bfloat16)).float()


def settled(network, task="classify", num_outputs=5, **options):
    settle(network, SPEC, TASKS[task](), "the network", num_outputs=num_outputs, **options)
    return network


def images(count=4):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


PICKS = [
    ("object", "logits"),
    ("dataclass", "logits"),
    ("tuple", "0"),
    ("nested", "heads.1.main"),
    ("nested", "heads.-1.main"),
    ("both", "1"),
]


@pytest.mark.parametrize(("kind", "output"), PICKS)
def test_the_output_that_counts_is_picked_in_the_network_its_copies_and_its_graph(kind, output):
    network = Net(kind).eval()
    names, wanted = list(network.state_dict()), network.logits(images())
    settled(network, output=output)
    assert torch.equal(network(images()), wanted)
    assert torch.equal(copy.deepcopy(network)(images()), wanted)
    assert torch.allclose(capture(network, images())(images(7)[:4]), network(images(7)[:4]))
    assert list(network.state_dict()) == names and type(network).__name__ == "Net"
    assert isinstance(network, Net)


@pytest.mark.parametrize(
    ("kind", "task", "num_outputs", "output", "message"),
    [
        (
            "object",
            "classify",
            5,
            None,
            r"returns logits \(1, 5\) for one image; expected \(N, K\) logits with num_classes = 5; the "
            r'card\'s output = "logits" would fit$',
        ),
        (
            "object",
            "classify",
            5,
            "logit",
            r"no output 'logit': it returns logits \(1, 5\) .*\"logits\" would fit",
        ),
        ("object", "classify", 6, None, r'output = "logits" and num_classes = 5 would fit'),
        (
            "both",
            "classify",
            5,
            None,
            r"returns 0 \(1, 5\), 1 \(1, 5\) .*; the card's output = \"1\" would fit",
        ),
        (
            "nested",
            "classify",
            5,
            "maps",
            r"heads.1.main \(1, 5\), maps \(1, 6, 6, 6\) .*'maps' is picked; .*main",
        ),
        ("nested", "segment", 6, None, 'output = "maps" would fit'),
        ("plain", "classify", 6, None, "num_classes = 5 would fit$"),
        ("plain", "segment", 5, None, "task may be classify or embed or detect or regress or other$"),
        ("plain", "image", None, None, r"expected \(N, C, H, W\) images; the card's task may be classify"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(kind, task, num_outputs, output, message):
    with pytest.raises(MismatchError, match=message):
        settled(Net(kind), task, num_outputs, output=output)


def test_without_a_tensor_nothing_fits():
    class Silent(nn.Module):
        def forward(self, x):
            return "nothing"

    with pytest.raises(
        MismatchError, match=r"returns a str without a tensor for one image; expected tensors$"
    ):
        settled(Silent(), "other", None)


@pytest.mark.parametrize(
    ("kind", "names"), [("nested", ["heads.0.aux", "heads.1.main", "maps"]), ("dataclass", ["logits"])]
)
@pytest.mark.parametrize("task", ["detect", "other"])
def test_tasks_of_any_outputs_keep_all_tensors(kind, names, task):
    network = settled(Net(kind), task, None)
    assert [name for name, _ in named_tensors(network(images()))] == names
    assert [name for name, _ in named_tensors(capture(network, images())(images()))] == names


@pytest.mark.parametrize("network", [Optional(), ByName()])
def test_the_input_without_a_default_counts(network):
    network = settled(network)
    assert torch.equal(network(images()), network.logits(images()))
    assert torch.allclose(capture(network, images())(images()), network(images()))
    with pytest.raises(TypeError):
        network(images(), images())


def test_several_needed_inputs_are_refused():
    with pytest.raises(UsageError, match="needs 2 inputs: x, other; expected one input without a default"):
        settled(TwoImages())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_run_in_float32_casts_inside_too(dtype):
    network = HalfInside(dtype)
    single = copy.deepcopy(network.net).float().eval()
    with pytest.warns(UserWarning, match=f"^the network is {str(dtype)[6:]}: it runs in float32"):
        assert made_float(network, "the network")
    settled(network, in_float=True)
    assert torch.equal(network(images()), single(images()))
    assert torch.allclose(capture(network, images())(images()), network(images()))
    assert torch.zeros(1).half().dtype == torch.float16


class Changing(Net):
    """Outputs that do not follow from the image alone."""

    def forward(self, x):
        if self.kind == "batch norm":
            return self.logits(F.batch_norm(x, None, None, training=True))
        y = self.logits(x)
        if self.kind == "dropout":
            return F.dropout(y, 0.5)
        if self.kind == "state":
            self.conv.bias.add_(1)
        return y - y.sum(0) / 9 if self.kind == "sum" else y


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("dropout", "others in each call"),
        ("state", "others in each call"),
        ("batch norm", "depend on the images beside it"),
        ("sum", "depend on the images beside it"),
        ("plain", None),
    ],
)
def test_outputs_of_an_image_that_follow_something_else_are_said(kind, said):
    network = Changing(kind).requires_grad_(False)
    with warnings.catch_warnings(record=True) as caught:
        settle(network, SPEC, TASKS["classify"](), "the network", num_outputs=5)
    assert [said in str(warning.message) for warning in caught] == ([True] if said else [])


def test_a_network_for_one_image_is_refused():
    network = nn.Sequential(nn.Flatten(0), nn.Linear(192, 5), nn.Unflatten(0, (1, 5)))
    with pytest.raises(MismatchError, match="takes one image but failed on two with RuntimeError"):
        settle(network, SPEC, TASKS["classify"](), "the network")


@pytest.mark.parametrize(("kind", "said"), [("softmax", "softmax"), ("log_softmax", "log_softmax")])
def test_probabilities_are_said_once(kind, said):
    with pytest.warns(UserWarning, match=f"^the network ends in {said}: logits are wanted"):
        settled(Net(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settled(Net())
        settled(Net("softmax"), "embed")


CARD = """
architecture = "net:Net"
weights = "net.pt"
{fields}
[image]
size = [8, 6]
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
"""
UPSCALER = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, {channels} * {scale} ** 2, 3, padding=1)
        self.shuffle = nn.PixelShuffle({scale})

    def forward(self, x):
        return self.shuffle(self.conv(x))
"""


def card_teacher(folder, fields, channels=3, scale=2):
    (folder / "net.py").write_text(UPSCALER.format(channels=channels, scale=scale))
    (folder / "card.toml").write_text(CARD.format(fields=fields))
    state = nn.Conv2d(3, channels * scale**2, 3).state_dict()
    torch.save({f"conv.{name}": value for name, value in state.items()}, folder / "net.pt")
    return load_teacher(f"file:{folder / 'card.toml'}")


@pytest.mark.parametrize(
    ("fields", "channels", "scale", "measured"),
    [
        ("", 3, 2, ("y", 2, (0.0, 1.0))),
        ("", 3, 1, ("rgb", 0, (0.0, 1.0))),
        ("", 1, 3, ("rgb", 3, (0.0, 1.0))),
        ('psnr_on = "rgb"\nborder = 1\noutput_range = [-1.0, 1]', 3, 2, ("rgb", 1, (-1.0, 1.0))),
    ],
)
def test_a_card_says_how_images_are_measured(tmp_path, fields, channels, scale, measured):
    teacher = card_teacher(tmp_path, 'task = "image"\n' + fields, channels, scale)
    task = teacher.task
    assert (task.psnr_on, task.border, task.output_range) == measured
    assert (task.name, teacher.num_outputs, teacher.num_classes) == ("image", channels, None)


@pytest.mark.parametrize(
    ("fields", "channels", "message"),
    [
        ('task = "image"\npsnr_on = "y"', 1, "psnr_on = 'y' for outputs of 1 channel"),
        ('task = "other"\nborder = 2', 3, "border is for task 'image', not 'other'"),
        ('task = "image"\noutput_range = [1, 1]', 3, "output_range is the values of black and white"),
        ('task = "segment"', 3, "task 'segment' needs num_classes and no embedding_size"),
        ('task = "image"\nnum_classes = 3', 3, "task 'image' needs no num_classes or embedding_size"),
        ('task = "other"\noutput = "a..b"', 3, "output: String should match"),
        ('task = "other"\noutput = "a"', 3, r"has no output 'a': it returns a tensor \(1, 3, 16, 12\)"),
    ],
)
def test_fields_of_other_tasks_are_refused(tmp_path, fields, channels, message):
    with pytest.raises(UsageError, match=message):
        card_teacher(tmp_path, fields, channels)


def test_a_card_of_masks_has_its_classes(tmp_path):
    teacher = card_teacher(tmp_path, 'task = "segment"\nnum_classes = 3')
    assert (teacher.task.name, teacher.num_outputs, teacher.num_classes) == ("segment", 3, None)


class Viewed(nn.Module):
    """Logits of maps that `view` flattens, which takes one layout alone."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 8 * 8, 5)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).view(x.size(0), -1))


@pytest.mark.parametrize("channels", [3, 1])
def test_a_view_is_taken_of_images_in_any_layout(channels):
    spec = ImageSpec(channels=channels, size=(8, 8), mean=(0.5,) * channels, std=(0.25,) * channels)
    network = Viewed(channels).eval().requires_grad_(False)
    given = torch.randn(4, channels, 8, 8)
    wanted, layout = network(given), network.conv.weight.stride()
    settle(network, spec, TASKS["classify"](), "the network", num_outputs=5)
    assert network.conv.weight.stride() == layout and torch.equal(network(given), wanted)
    turned = channels_last(copy.deepcopy(network))
    torch.testing.assert_close(turned(maps_channels_last(given)), wanted)
    graph = channels_last(capture(network, given))
    torch.testing.assert_close(graph(maps_channels_last(given)), wanted)


def test_a_view_as_another_type_stays_one():
    with ByReshape():
        assert torch.ones(2).view(torch.int32).dtype == torch.int32
        assert torch.ones(2, 3).t().view(6).shape == torch.ones(2, 3).t().view(size=(6,)).shape == (6,)


def test_what_a_network_of_one_number_or_without_an_axis_is_told():
    tasks = "embed or detect or regress or other"
    with pytest.raises(MismatchError, match=rf"expected .*; the card's task may be {tasks}$"):
        settled(Net(classes=1), num_outputs=2)
    squeezed = nn.Sequential(Net(), nn.Flatten(0))
    with pytest.raises(MismatchError, match=r"keep the axis of the images: flatten\(1\)"):
        settled(squeezed)
