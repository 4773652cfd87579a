"""A student that is another network than its teacher."""

import dataclasses

import pytest
import torch
from tiny_students import outputs
from toys import image_spec, make_teacher, shared_teacher, structured_images

import zsq
from zsq.core.errors import MismatchError, OptionError
from zsq.core.runtime import Runtime
from zsq.engine.estimate import forward_gflops
from zsq.fitting.another import Adapted, in_place_of
from zsq.saved.cost import student_cost
from zsq.students import create
from zsq.teacher import load_teacher
from zsq.widths import Bits

CARD = """
architecture = "own:Net"
num_classes = 5
{weights}
[image]
size = [{side}, {side}]
mean = [0.1, 0.2, 0.3]
std = [0.5, 0.25, 1.0]
channel_order = "{order}"
"""
CODE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
        )
"""
SHORT = {"iterations": 2, "batch": 4, "batch_norm": "train"}


@pytest.fixture(scope="module")
def teacher():
    return shared_teacher()


@pytest.fixture(scope="module")
def pixels(teacher):
    return teacher.spec.standard_to_pixels(structured_images((8, *teacher.spec.shape)))


@pytest.fixture
def card(tmp_path):
    def written(side=16, order="rgb", weights=None):
        (tmp_path / "own.py").write_text(CODE)
        line = "" if weights is None else 'weights = "own.pt"'
        if weights is not None:
            torch.save(weights, tmp_path / "own.pt")
        (tmp_path / "own.toml").write_text(CARD.format(side=side, order=order, weights=line))
        return f"file:{tmp_path / 'own.toml'}"

    return written


def fit(teacher, pixels, bits="W32A32", seed=0, name="kd", **options):
    student = create(name, teacher.spec, {**SHORT, **options}, Runtime())
    return student.fit(teacher, pixels, Bits.parse(bits), seed=seed)


def weights_of(card):
    torch.manual_seed(0)
    namespace = {}
    exec(CODE, namespace)
    return namespace["Net"]().state_dict()


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({}, {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 1.0)}),
        ({"channel_order": "bgr"}, {"mean": (0.1, 0.2, 0.3)}),
        ({"mean": (0.1, 0.2, 0.3), "channel_order": "bgr"}, {"channel_order": "bgr"}),
        ({}, {"mean": (0.0,) * 3, "std": (1.0,) * 3, "range": (0, 255)}),
        ({}, {"input_size": (24, 20)}),
        ({}, {"input_size": (24, 20), "interpolation": "nearest"}),
    ],
)
def test_images_arrive_as_the_other_network_takes_them(given, taken):
    pixels = torch.randint(256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    given, taken = image_spec(**given), image_spec(**taken)
    arrived = Adapted(torch.nn.Identity(), given, taken)(given.pixels_to_norm(pixels))
    torch.testing.assert_close(arrived, taken.pixels_to_norm(pixels), rtol=1e-5, atol=1e-4)


def test_a_network_of_the_same_images_is_left_as_it_is(teacher):
    other = make_teacher(seed=1)
    assert in_place_of(teacher, other.network, other.spec, "own") is other.network


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_weights_of_a_card_give_the_logits_that_they_give_as_a_teacher(teacher, pixels, card, order):
    named = card(order=order, weights=weights_of(card))
    fitted = fit(teacher, pixels, network=named, iterations=0, batch_norm="frozen")
    own = load_teacher(named)
    expected = own.logits(own.spec.pixels_to_standard(pixels))
    torch.testing.assert_close(outputs(fitted, pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:a network with fresh weights")
@pytest.mark.parametrize(("bits", "side"), [("W32A32", 16), ("W4A4", 12)])
def test_it_trains_is_saved_and_counted_without_the_cards_code(teacher, pixels, card, bits, side, tmp_path):
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    named = card(side)
    fitted, same = (fit(teacher, pixels, bits, network=named) for _ in range(2))
    assert torch.equal(outputs(fitted, pixels), outputs(same, pixels))
    assert not torch.equal(
        outputs(fitted, pixels), outputs(fit(teacher, pixels, bits, 1, network=named), pixels)
    )
    for name, tensor in teacher.network.state_dict().items():
        assert torch.equal(tensor, before[name])
    zsq.save_student(fitted, teacher, tmp_path / "saved")
    for file in ("own.py", "own.toml"):
        (tmp_path / file).unlink()
    loaded = zsq.load_student(tmp_path / "saved")
    assert torch.equal(outputs(loaded, pixels), outputs(fitted, pixels))
    cost = student_cost(loaded)
    inner = (side - 3) // 2 + 1
    assert cost.macs == 27 * 4 * inner**2 + 36 * 6 * (inner - 2) ** 2 + 30
    assert loaded.made.options["network"] == named


@pytest.mark.filterwarnings("ignore:a network with fresh weights")
def test_below_32_bits_it_is_trained_in_float_first(teacher, pixels, card):
    """Both courses advance the log."""
    named, log = card(), []
    student = create("kd", teacher.spec, {**SHORT, "network": named, "iterations": 20}, Runtime())

    class Log:
        def advance(self, amount, **values):
            log.append(amount)

    macs = 27 * 4 * 7**2 + 36 * 6 * 5**2 + 30
    size = 2e-9 * macs / forward_gflops(teacher)
    for bits, steps in ((Bits(8, 8), (0.7, 1.0)), (Bits(32, 32), (0.7,))):
        log.clear()
        student.fit(teacher, pixels, bits, log=Log())
        images = 20 * 4
        assert sum(log) == len(steps) * images == student.images_trained(teacher, 8, bits)
        # The teacher's own pass is a fifth of a step.
        work = sum(images * (0.2 + size * (step - 0.2)) for step in steps)
        assert student.training_work(teacher, 8, bits) == pytest.approx(work)
    assert "network" not in fit(teacher, pixels, iterations=0).made.options


@pytest.mark.filterwarnings("ignore:a network with fresh weights")
def test_what_does_not_fit_is_refused(teacher, pixels, card):
    with pytest.raises(OptionError, match="fresh weights and batch_norm=frozen"):
        fit(teacher, pixels, network=card(), batch_norm="frozen")
    with pytest.raises(OptionError, match=r"network 'resnet18'; expected file:CARD"):
        fit(teacher, pixels, network="resnet18")
    with pytest.raises(MismatchError, match=r"returns a tensor \(2, 5\) .*\(2, 7\), as teacher toy"):
        fit(make_teacher(outputs=7), pixels, network=card(weights=weights_of(card)))
    grey = make_teacher(spec=image_spec(1))
    with pytest.raises(MismatchError, match="3 channels over 2 sides; expected 1 channel"):
        fit(grey, pixels[:, :1], network=card(weights=weights_of(card)))
    with pytest.raises(OptionError, match="takes no pass fold"):
        create("kd", teacher.spec, {"network": "cifar10:resnet8"}, Runtime(), passes=["fold"])
    with pytest.raises(OptionError, match="takes no pass fold"):
        create("kd,lsq-kd", teacher.spec, {"kd.network": "cifar10:resnet8"}, Runtime(), passes=["fold"])
    with pytest.raises(OptionError, match="the teacher's own network"):
        create("mixed", teacher.spec, {"inner": "kd", "kd.network": "cifar10:resnet8"}, Runtime())
    with pytest.raises(OptionError, match="expected network=None"):
        create("ptq,kd", teacher.spec, {"kd.network": "cifar10:resnet8"}, Runtime())


def test_few_images_are_said(teacher, pixels, card):
    with pytest.warns(UserWarning, match="8 images for 1 epochs"):
        fit(teacher, pixels, network=card())


@pytest.mark.filterwarnings("ignore:a network with fresh weights")
def test_fresh_networks_are_drawn_as_their_architecture_draws_them(pixels):
    teacher = dataclasses.replace(make_teacher(outputs=10), spec=image_spec())
    one, same = (fit(teacher, pixels, network="cifar10:resnet8", iterations=0) for _ in range(2))
    assert torch.equal(outputs(one, pixels), outputs(same, pixels))
