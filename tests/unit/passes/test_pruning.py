"""One-shot magnitude pruning: which weights go, and that no student brings them back."""

import json

import pytest
import torch

import zsq
from zsq.core.errors import MismatchError, OptionError, StudentFileError
from zsq.core.runtime import Runtime
from zsq.fitting.passed import Passed
from zsq.graph import capture
from zsq.passes import check_passes, prepare, split_pass
from zsq.passes.pruning import largest, prunable
from zsq.quantizers.layers import weight_of
from zsq.saved.cost import student_cost
from zsq.students import create
from zsq.widths import Bits

FEW = {"genie-m": {"iterations": 30, "batch": 8}, "lsq-kd": {"iterations": 3, "batch": 8}}


def fitted(name, digits, images, bits="W4A4", passes=("prune=0.5",)):
    student = create(name, digits.spec, FEW.get(name, {}), Runtime(), passes=passes)
    return student.fit(digits, images[:16], Bits.parse(bits))


def test_exactly_the_largest_stay():
    weights = {"a": torch.tensor([[3.0, -3.0], [3.0, 1.0]]), "b": torch.tensor([[2.0, -4.0]])}
    each = largest(weights, 0.5, together=False)
    assert each["a"].tolist() == [[True, True], [False, False]] and each["b"].tolist() == [[False, True]]
    both = largest(weights, 0.5, together=True)
    assert both["a"].tolist() == [[True, True], [False, False]] and both["b"].tolist() == [[False, True]]
    both = largest(weights, 2 / 3, together=True)
    assert both["a"].sum() == 1 and both["b"].sum() == 1


def test_first_last_and_depthwise_layers_stay_dense(digits):
    network = capture(digits.network, digits.example())
    names = list(prunable(network))
    assert names and not {"conv1.weight", "linear.weight"} & set(names)
    for name in names:
        layer = network.get_submodule(name.removesuffix(".weight"))
        layer.groups = layer.in_channels
    assert not list(prunable(network))
    with pytest.raises(MismatchError, match="no layer to prune"):
        prepare(["prune=0.5"], torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.zeros(2, 2))


@pytest.mark.parametrize("name", ["ptq", "genie-m", "lsq-kd", "gdfq-ft"])
def test_pruned_weights_stay_zero_through_a_fit(name, digits, images, tmp_path):
    if name == "gdfq-ft":
        FEW[name] = {"iterations": 2, "batch": 8}
    student = fitted(name, digits, images)
    masks = prepare(["prune=0.5"], digits.network, digits.example()).masks
    for weight, mask in masks.items():
        assert not weight_of(student.network, weight)[~mask].any()
        assert mask.sum() == student.kept[weight] == round(mask.numel() / 2)
    zsq.save_student(student, digits, tmp_path)
    loaded = zsq.load_student(tmp_path)
    assert loaded.kept == student.kept and loaded.made.passes == ("prune=0.5",)
    standard = digits.spec.pixels_to_standard(images)
    assert torch.equal(loaded.logits(standard), student.logits(standard))


def test_weights_without_a_grid_stay_zero_too(digits, images):
    student = fitted("lsq-kd", digits, images, "W32A4", ["prune-global=0.75"])
    masks = prepare(["prune-global=0.75"], digits.network, digits.example()).masks
    assert sum(student.kept.values()) == round(sum(mask.numel() for mask in masks.values()) / 4)
    for weight, mask in masks.items():
        assert not weight_of(student.network, weight)[~mask].any()


def test_none_pruned_is_the_student_itself(digits, images):
    standard = digits.spec.pixels_to_standard(images)
    plain, pruned = (fitted("ptq", digits, images, passes=passes) for passes in ((), ("prune=0",)))
    assert torch.equal(plain.logits(standard), pruned.logits(standard))


def test_cost_of_what_is_left(digits, images):
    dense, pruned = (fitted("ptq", digits, images, passes=passes) for passes in ((), ("prune=0.75",)))
    before, after = ({x.name: x for x in student_cost(each).layers} for each in (dense, pruned))
    name = "block2.conv2"
    assert after["conv1"] == before["conv1"]
    assert after[name].bit_operations * 4 == before[name].bit_operations
    # A quarter of the weights at 4 bits, and a bit for each place.
    assert after[name].weight_bytes == before[name].num_weights * (4 / 4 + 1) / 8


def test_who_cannot_leave_zeros_is_refused(digits):
    for name, why in (("qfd", "its weights are never zero"), ("cfws", "merged and split")):
        with pytest.raises(OptionError, match=why):
            create(name, digits.spec, {}, Runtime(), passes=["prune=0.5"])


def test_a_student_that_brings_weights_back_is_found_out(digits, images):
    student = Passed(create("ptq", digits.spec, {}, Runtime()), ["prune=0.5"])
    student.student.run = lambda fit: create("ptq", digits.spec, {}, Runtime()).fit(
        digits, images[:4], fit.bits
    )
    with pytest.raises(MismatchError, match="ptq does not leave pruned weights zero"):
        student.fit(digits, images[:4], Bits(8, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune", "pass prune; expected a share of weights from 0"),
        ("prune=1", "less than 1"),
        ("prune=x", "as in prune=0.5"),
        ("prune=nan", "as in prune=0.5"),
        ("fold=1", "pass fold=1; expected fold"),
        ("prnue=1", "unknown pass 'prnue'"),
    ],
)
def test_numbers_of_passes(text, message):
    with pytest.raises(OptionError, match=message):
        check_passes([text])
    assert split_pass("prune=0.5") == ("prune", (0.5,))
    with pytest.raises(OptionError, match="named twice"):
        check_passes(["prune=0.5", "prune=0.25"])


def test_a_file_that_claims_more_zeros_than_it_has(digits, images, tmp_path):
    zsq.save_student(fitted("ptq", digits, images), digits, tmp_path)
    path = tmp_path / "student.json"
    record = json.loads(path.read_text())
    record["kept"]["block2.conv2.weight"] = 3
    path.write_text(json.dumps(record))
    with pytest.raises(StudentFileError, match="weights other than zero, where 3 of them are kept"):
        zsq.load_student(tmp_path)
