"""Mixed precision: bits of each row within the cost of one width."""

import dataclasses
import itertools

import pytest
import torch
from tiny_students import outputs
from toys import shared_teacher, structured_images

import zsq
from zsq.contract import Facts
from zsq.core.errors import MismatchError, OptionError, UnknownNameError
from zsq.core.runtime import Runtime
from zsq.fitting.mixing import Costs, Part, drawn, greedy
from zsq.saved.cost import student_cost
from zsq.students import STUDENTS, create
from zsq.tasks.other import Other
from zsq.widths import Bits


def deep(channels, outputs):
    from torch import nn
    from toys import conv_bn, head

    return nn.Sequential(
        conv_bn(channels, 8, 2), conv_bn(8, 8), conv_bn(8, 12, 2), conv_bn(12, 8), head(8, outputs)
    )


@pytest.fixture(scope="module")
def teacher():
    return shared_teacher(deep)


@pytest.fixture(scope="module")
def pixels(teacher):
    return teacher.spec.standard_to_pixels(structured_images((12, *teacher.spec.shape)))


def fit(teacher, pixels, bits="W4A4", name="mixed", seed=0, **options):
    student = create(name, teacher.spec, options, Runtime())
    return student.fit(teacher, pixels, Bits.parse(bits), seed=seed, first_last=8)


PARTS = (Part(100, "a", "b", 10), Part(50, "c", "d", 40), Part(7, 8, "b"))
HARM = {
    row: {bits: scale * 4.0**-bits for bits in range(2, 9)}
    for row, scale in zip("abcd", (1, 5, 2, 9), strict=True)
}
MOST = dict.fromkeys("abcd", 8)


@pytest.mark.parametrize("budget", ["operations", "bytes"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_searches_meet_the_budget_and_waste_little(budget, bits):
    costs = Costs(PARTS, budget)
    limit = costs.of(dict.fromkeys("abcd", bits))
    found = greedy(costs, HARM, MOST, limit)
    assert costs.of(found) <= limit and set(found.values()) <= set(range(2, 9))
    for row in "abcd":
        wider = found | {row: found[row] + 1}
        assert found[row] == 8 or costs.of(wider) > limit or costs.of(wider) == costs.of(found)
    if bits == 8:
        assert found == MOST
    if bits == 2 and budget == "operations":
        assert set(found.values()) == {2}
    generator = torch.Generator().manual_seed(0)
    assert costs.of(drawn(costs, HARM, MOST, limit, generator)) <= limit


def test_greedy_is_near_the_best_of_all_policies():
    costs = Costs(PARTS, "operations")
    limit = costs.of(dict.fromkeys("abcd", 4))

    def harm(policy):
        return sum(HARM[row][bits] for row, bits in policy.items())

    policies = (dict(zip("abcd", bits, strict=True)) for bits in itertools.product(range(2, 9), repeat=4))
    best = min(harm(policy) for policy in policies if costs.of(policy) <= limit)
    assert best <= harm(greedy(costs, HARM, MOST, limit)) <= 1.5 * best


@pytest.mark.parametrize("search", ["greedy", "random"])
def test_table_file_and_cost_agree_and_cost_no_more_than_uniform(teacher, pixels, search, tmp_path):
    fitted = fit(teacher, pixels, search=search)
    uniform = student_cost(fit(teacher, pixels, search="uniform"))
    cost = student_cost(fitted)
    assert cost.bit_operations <= uniform.bit_operations
    widths = {row.name: row.bits for row in fitted.tensors}
    assert all(widths[row] == bits for row, bits in fitted.bits.rows.items())
    assert len(set(fitted.bits.rows.values())) > 1
    assert {layer.name: layer.weight_bits for layer in cost.layers} == {
        row.name.removesuffix(".weight"): row.bits for row in fitted.tensors if row.kind == "weight"
    }
    zsq.save_student(fitted, teacher, tmp_path)
    loaded = zsq.load_student(tmp_path)
    assert torch.equal(outputs(loaded, pixels), outputs(fitted, pixels)) and loaded.student == "mixed"


def test_bytes_are_a_budget_of_weights_alone(teacher, pixels):
    fitted = fit(teacher, pixels, "W3A5", budget="bytes")
    assert student_cost(fitted).weight_bytes <= student_cost(fit(teacher, pixels, "W3A5", "ptq")).weight_bytes
    assert all(row.endswith(".weight") for row in fitted.bits.rows)
    assert {row.bits for row in fitted.tensors if row.kind == "activation"} == {5, 8}


@pytest.mark.parametrize("bits", ["W8A8", "W3A4"])
def test_one_width_is_the_inner_student(teacher, pixels, bits):
    """All rows at 8 bits by search, or uniform ones by name."""
    own = {"qdrop.iterations": 2, "qdrop.batch": 4}
    search = "greedy" if bits == "W8A8" else "uniform"
    fitted = fit(teacher, pixels, bits, inner="qdrop", search=search, **own)
    inner = fit(teacher, pixels, bits, "qdrop", iterations=2, batch=4)
    assert torch.equal(outputs(fitted, pixels), outputs(inner, pixels))
    assert fitted.tensors == inner.tensors and fitted.made.options["qdrop.iterations"] == 2


def test_seeds_draw_policies(teacher, pixels):
    one, other = (fit(teacher, pixels, search="random", seed=seed).bits.rows for seed in (0, 1))
    assert one != other


OWN_ROWS = {name: kind for name, kind in STUDENTS.items() if kind.facts.own_rows}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        *(({"inner": name}, f"inner={name}.*; {kind.facts.own_rows}") for name, kind in OWN_ROWS.items()),
        ({"genie-m.iterations": 3}, "ptq.KEY"),
        ({"least": 6, "most": 5}, "least"),
    ],
)
def test_options_that_do_not_fit_are_refused(teacher, options, error):
    with pytest.raises(OptionError, match=error):
        create("mixed", teacher.spec, options, Runtime())


def test_a_student_says_that_it_cannot_be_inside(teacher, monkeypatch):
    class Another(STUDENTS["ptq"]):
        facts = Facts(paper="none", summary="a test", own_rows="it has none")

    assert set(OWN_ROWS) == {"cfws", "dqnet", "mixed"}
    monkeypatch.setitem(STUDENTS, "another", Another)
    with pytest.raises(OptionError, match="inner=another; expected another student; it has none"):
        create("mixed", teacher.spec, {"inner": "another"}, Runtime())


def test_unknown_students_small_budgets_and_tasks_without_a_loss_are_refused(teacher, pixels):
    with pytest.raises(UnknownNameError):
        create("mixed", teacher.spec, {"inner": "nobody"}, Runtime())
    with pytest.raises(OptionError, match="nothing narrower"):
        fit(teacher, pixels, "W3A3", least=4)
    with pytest.raises(MismatchError, match="search=uniform"):
        fit(dataclasses.replace(teacher, task=Other()), pixels)
