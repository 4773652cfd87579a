"""Bits chosen for each image: the choices, what they cost, and the student that they make."""

import copy
import dataclasses
import json

import pytest
import torch
from tiny_students import outputs
from torch import nn
from toys import conv_bn, head, shared_teacher, structured_images

import zsq
from zsq.core.errors import OptionError, StudentFileError
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.fitlog import FitEntry
from zsq.fitting.choosing import (
    Chooser,
    WidthCosts,
    change_within_budget,
    masks_of,
    scores_of,
    shares_on,
)
from zsq.images.imageset import ImageSet
from zsq.measure.choices import choices_by_student
from zsq.measure.evaluate import score_teacher
from zsq.measure.gap import fit_and_score
from zsq.measure.protocol import Protocol, StudentSpec, fit_key, resolve_students
from zsq.placement.choices import CONTROLLER, SUFFIXES, tap_of, widths_of
from zsq.placement.sites import place
from zsq.saved.choices import choice_lines, entropies, entropy
from zsq.saved.cost import student_cost
from zsq.saved.onnx_qdq import check_exportable
from zsq.students import create
from zsq.widths import Bits

LAYERS = ("2.0", "3.0")


def deep(channels, outputs):
    return nn.Sequential(
        conv_bn(channels, 8, 2), conv_bn(8, 8), conv_bn(8, 12, 2), conv_bn(12, 8), head(8, outputs)
    )


@pytest.fixture(scope="module")
def teacher():
    return shared_teacher(deep)


@pytest.fixture(scope="module")
def pixels(teacher):
    return teacher.spec.standard_to_pixels(structured_images((12, *teacher.spec.shape)))


def fit(teacher, pixels, bits="W4A4", name="dqnet", **options):
    student = create(name, teacher.spec, {"batch": 6, **options}, Runtime())
    return student.fit(teacher, pixels, Bits.parse(bits), first_last=8)


@pytest.fixture(scope="module")
def trained(teacher, pixels):
    return fit(teacher, pixels, iterations=3)


def always(fitted, shift):
    """The student with every image at `shift` bits more."""
    biased = fitted.network.get_parameter(f"{CONTROLLER[1]}.bias")
    with torch.no_grad():
        biased.copy_(torch.tensor([1e6 * (each == shift) for each in SUFFIXES] * len(LAYERS)))
    shares = {layer + suffix: float(each == shift) for layer in LAYERS for each, suffix in SUFFIXES.items()}
    return dataclasses.replace(fitted, shares=shares)


def test_the_choice_of_one_width_is_the_static_student_and_costs_as_much(teacher, pixels):
    fitted, static = fit(teacher, pixels, iterations=0), fit(teacher, pixels, name="lsq-kd", iterations=0)
    same = always(fitted, 0)
    assert torch.equal(outputs(same, pixels), outputs(static, pixels))
    controller = [layer for layer in student_cost(same).layers if layer.name in CONTROLLER]
    own = sum(layer.bit_operations for layer in controller)
    # Features of 8 channels at 8x8, 64 numbers, three widths of two layers; all of 8 bits.
    assert own == (8 * 64 * 64 + 64 * 6) * 64
    assert student_cost(same).bit_operations - own == student_cost(static).bit_operations
    wide, wider = always(fitted, 1), fit(teacher, pixels, "W5A5", "lsq-kd", iterations=0)
    parts = {layer.name: layer.bit_operations for layer in student_cost(wider).layers}
    of_wide = {layer.name: layer.bit_operations for layer in student_cost(wide).layers}
    assert all(of_wide[f"{layer}_wide"] == parts[layer] and of_wide[layer] == 0 for layer in LAYERS)
    assert not torch.equal(outputs(wide, pixels), outputs(static, pixels))


def test_each_width_has_steps_of_its_own_and_rows_say_the_bits(trained):
    rows = {row.name: row.bits for row in trained.tensors}
    for layer in LAYERS:
        names = [f"{layer}{suffix}.{part}" for part in ("weight", "input") for suffix in SUFFIXES.values()]
        assert [rows[name] for name in names] == [3, 4, 5, 3, 4, 5]
        steps = [
            trained.network.get_submodule(f"{layer}{suffix}.weight_quantizer").step
            for suffix in SUFFIXES.values()
        ]
        assert (steps[0] > steps[1]).all() and (steps[1] > steps[2]).all()
    assert rows["1.0.weight"] == 4 and rows["4.2.weight"] == 8 and rows["controller_first.input"] == 8
    assert "1.0_narrow.weight" not in rows and "4.2_narrow.weight" not in rows


def test_an_image_alone_and_in_a_batch_get_the_same(trained, pixels):
    norm = trained.spec.pixels_to_norm(pixels)
    # Scores of a fresh controller hardly differ: let half of the images choose otherwise.
    trained = dataclasses.replace(trained, network=copy.deepcopy(trained.network))
    scores = scores_of(trained.network, [norm]).median(0).values.flatten()
    trained.network.get_parameter(f"{CONTROLLER[1]}.bias").sub_(scores)
    together = outputs(trained, pixels)
    alone = torch.cat([outputs(trained, each[None]) for each in pixels])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    masks = masks_of(trained.network, [norm])
    assert torch.equal(masks, masks_of(trained.network, norm.split(1)))
    assert torch.equal(masks.sum(-1), torch.ones(12, 2)) and len(masks.unique(dim=0)) > 1
    shares = shares_on(trained, pixels)
    assert list(shares) == list(trained.shares) and shares["2.0_wide"] == masks[:, 0, 2].mean().item()


def test_the_student_is_saved_with_its_choices(teacher, pixels, tmp_path):
    fitted = fit(teacher, pixels, "W3A3", iterations=2)
    zsq.save_student(fitted, teacher, tmp_path)
    loaded = zsq.load_student(tmp_path)
    assert torch.equal(outputs(loaded, pixels), outputs(fitted, pixels))
    assert loaded.shares == fitted.shares and student_cost(loaded) == student_cost(fitted)
    assert loaded.bits == Bits(3, 3) and loaded.tensors == fitted.tensors
    record = tmp_path / "student.json"
    text = record.read_text()
    for wrong in ({"2.0_narrow": 0.5, "2.0": 0.5}, {"a": 1.0}, {"2.0": 1.5}):
        record.write_text(json.dumps(json.loads(text) | {"shares": wrong}))
        with pytest.raises(StudentFileError, match="shares"):
            zsq.load_student(tmp_path)


def test_the_controller_sees_the_features_before_maps_get_smaller(teacher):
    network = place(teacher.network, teacher.example(), Bits(4, 4), fold=False).network
    tap = tap_of(network, 4)
    assert tap.meta["shape"][1:] == (8, 8, 8)
    assert tap_of(network, 3) is None


def test_choices_are_hard_and_have_the_gradient_of_soft_ones():
    scores = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    chooser = Chooser(4, 2, 3, 0.5)
    weights = torch.arange(24.0).view(4, 2, 3)
    masks = chooser(scores)
    assert torch.equal(masks, nn.functional.one_hot(scores.argmax(-1), 3).float())
    (masks * weights).sum().backward()
    soft = scores.detach().requires_grad_()
    (torch.softmax(soft / 0.5, -1) * weights).sum().backward()
    torch.testing.assert_close(scores.grad, soft.grad)
    chooser.draw(torch_generator(0, 0, "test"))
    assert not torch.equal(
        chooser(scores * 0), masks * 0 + nn.functional.one_hot(torch.zeros(4, 2).long(), 3)
    )
    assert torch.equal(chooser(scores[:2]), masks[:2]), "no noise but in batches of the training"


def test_what_is_beyond_the_budget_alone_is_in_the_loss(teacher):
    student = create("dqnet", teacher.spec, {"cost_weight": 3.0}, Runtime())
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    plain = student.loss(logits, logits * 2)
    for costs, over in (([0.5, 0.9], 0.0), ([0.5, 1.9], 0.2)):
        cost = torch.tensor(costs, requires_grad=True)
        loss = student.total_loss((logits, cost), logits * 2)
        assert loss.item() == pytest.approx((plain + 3 * over).item())
        loss.backward()
        assert (cost.grad > 0).all() if over else (cost.grad == 0).all()


def test_scores_are_moved_no_further_than_the_budget_needs():
    scores = torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(0))
    shifts = torch.tensor([-1.0, 0.0, 1.0])

    def cost(change, costs):
        masks = nn.functional.one_hot((scores + change).argmax(-1), 3).float()
        return costs(masks).mean().item()

    costs = WidthCosts(torch.tensor([[0.2, 0.5, 0.9], [0.2, 0.5, 0.9]]), 0.05)
    change = change_within_budget(scores, costs, shifts)
    assert change[0] > 0 > change[2] and 0.98 < cost(change, costs) <= 1 < cost(0, costs)
    cheap = WidthCosts(torch.full((2, 3), 0.1), 0.05)
    assert torch.equal(change_within_budget(scores, cheap, shifts), torch.zeros(3))


def test_lines_say_what_was_chosen_and_when_it_is_always_the_same(trained):
    assert entropy([0.5, 0.25, 0.25]) == 1.5 and entropy([1.0, 0.0]) == 0
    mixed = dict(zip(trained.shares, (0.5, 0.25, 0.25, 0.0, 1.0, 0.0), strict=True))
    first, second, last = choice_lines(trained, mixed, "test images")
    assert first == "2.0: 3 bits 50%, 4 bits 25%, 5 bits 25% of test images, entropy 1.50"
    assert second.endswith("entropy 0.00") and "mean entropy of the choices 0.75" in last
    assert "failed" not in last
    same = dict(zip(trained.shares, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), strict=True))
    assert choice_lines(trained, same, "x")[-1].endswith("all get the same bits: the controller has failed")
    assert choice_lines(trained, {}, "x") == []
    assert widths_of({"a_wide_narrow": 1.0, "a_wide": 0.0}) == {"a_wide": ["a_wide_narrow", "a_wide"]}


def test_records_of_fits_hold_what_evaluation_images_choose(teacher, pixels):
    specs = [StudentSpec(name, Bits(4, 4), {"iterations": 0}, first_last=8) for name in ("dqnet", "lsq-kd")]
    students = resolve_students(specs, teacher.spec, Runtime())
    real, labels = ImageSet(pixels[:4], None, "toy"), torch.zeros(8, dtype=torch.long)
    protocol = Protocol(teacher, ImageSet(pixels[4:], labels, "toy"), [real], students, 2, Runtime())
    reference, shares = score_teacher(teacher, protocol.eval, Runtime()), []

    def keep(record, fitted):
        shares.append(shares_on(fitted, pixels[4:]))
        costs.append(student_cost(dataclasses.replace(fitted, shares=shares[-1])).bit_operations)

    costs = []
    records = fit_and_score(protocol, {"real": [real.pixels]}, reference, on_run=keep)
    chosen = [record["choices"] for record in records if record["student"] == "dqnet"]
    assert [each["entropies"] for each in chosen] == [entropies(each) for each in shares if each]
    assert [each["bit_operations"] for each in chosen] == costs[::2] and "choices" not in records[1]
    kept = FitEntry.model_validate_json(json.dumps({"record": records[0], "tensors": []}))
    assert kept.record["choices"] == chosen[0]
    bare = {key: value for key, value in records[0].items() if key != "choices"}
    assert fit_key(records[0]) == fit_key(bare)
    (source,) = choices_by_student(records)["dqnet W4A4"].values()
    assert source["bit_operations"] == sum(costs[::2]) / 2


def test_at_eight_bits_there_is_one_bit_less_and_no_more(teacher, pixels):
    fitted = fit(teacher, pixels, "W8A8", iterations=0)
    assert list(fitted.shares) == ["2.0_narrow", "2.0", "3.0_narrow", "3.0"]


def test_what_does_not_fit_is_refused(teacher, pixels, trained):
    with pytest.raises(OptionError, match="sparsity with student dqnet"):
        create("dqnet", teacher.spec, {"sparsity": 0.5}, Runtime())
    with pytest.raises(OptionError, match="layers have several widths each"):
        create("mixed", teacher.spec, {"inner": "dqnet"}, Runtime())
    with pytest.raises(OptionError, match="several widths in one layer"):
        check_exportable("dqnet", Bits(8, 8), 8)
    with pytest.raises(OptionError, match="whose images all pass the same layers"):
        create("lsq-kd", teacher.spec, {}, Runtime()).fit(teacher, pixels, Bits(4, 4), start=trained)
