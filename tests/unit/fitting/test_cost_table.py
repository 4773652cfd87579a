"""Budgets of costs that were measured for each layer and pair of widths."""

import itertools

import pytest
import torch
from tiny_students import outputs
from toys import shared_teacher, structured_images

from zsq.core.errors import OptionError
from zsq.core.runtime import Runtime
from zsq.fitting.cost_table import CostTable, read_costs
from zsq.fitting.mixing import Costs, Part
from zsq.students import create
from zsq.widths import Bits

HEADER = "layer,weight_bits,activation_bits,cost\n"
# Of `toys.plain`: convolutions 0.0 and 1.0, a linear layer 2.2.
WIDTHS = (2, 4, 8)


@pytest.fixture(scope="module")
def teacher():
    return shared_teacher()


@pytest.fixture(scope="module")
def pixels(teacher):
    return teacher.spec.standard_to_pixels(structured_images((8, *teacher.spec.shape)))


@pytest.fixture
def table(tmp_path):
    def written(lines):
        path = tmp_path / "costs.csv"
        path.write_text(HEADER + lines)
        return str(path)

    return written


def lines_of(layer, cost, lefts=WIDTHS, rights=WIDTHS):
    return "".join(f"{layer},{w},{a},{cost(w, a)}\n" for w, a in itertools.product(lefts, rights))


def fit(teacher, pixels, bits="W4A4", **options):
    student = create("mixed", teacher.spec, options, Runtime())
    return student.fit(teacher, pixels, Bits.parse(bits), first_last=8)


def test_costs_of_a_table_add_up_and_a_repeated_layer_counts_once():
    costs = {"a": {(2, 8): 1.0, (4, 8): 3.0}, "b": {(2, 2): 0.5, (2, 4): 0.75}}
    parts = (Part(9, "a.weight", 8, 5, "a"), Part(9, "b.weight", "b.input", 5, "b"), Part(7, 8, 8, 0, "c"))
    found = Costs((*parts, Part(9, "b.weight", "b.input1", 0, "b")), table=CostTable("t", costs))
    assert found.of({"a.weight": 4, "b.weight": 2, "b.input": 2, "b.input1": 4}) == 3.75
    assert found.choices(["a.weight", "b.input"], 2, 3) == {"a.weight": [2], "b.input": [2]}
    with pytest.raises(OptionError, match=r"no bits for 'b.input' in layer 'b'; expected bits of 5..8"):
        found.choices(["b.input"], 5, 8)
    with pytest.raises(OptionError, match="'d' is no layer of this network; expected 'a'"):
        Costs(parts[:1], table=CostTable("t", {"d": {}}))


@pytest.mark.parametrize("search", ["greedy", "random"])
def test_bits_are_those_of_the_table_and_cost_no_more_than_asked(teacher, pixels, table, search):
    path = table(lines_of("1.0", lambda w, a: w + 2 * a))
    fitted = fit(teacher, pixels, costs=path, search=search)
    widths = {row.name: row.bits for row in fitted.tensors}
    found = fitted.bits.rows
    assert found.keys() == {"1.0.weight", "1.0.input"} and set(found.values()) <= set(WIDTHS)
    assert widths["1.0.weight"] + 2 * widths["1.0.input"] <= 12
    assert fitted.made.options["costs"] == path


def test_a_free_layer_keeps_all_its_bits_and_a_limit_is_a_budget(teacher, pixels, table):
    free = fit(teacher, pixels, costs=table(lines_of("1.0", lambda w, a: 0.0)))
    assert set(free.bits.rows.values()) == {8}
    path = table(lines_of("1.0", lambda w, a: w * a))
    tight = fit(teacher, pixels, costs=path, limit=4)
    assert set(tight.bits.rows.values()) == {2}
    wide = fit(teacher, pixels, costs=path, limit=64)
    assert set(wide.bits.rows.values()) == {8}
    assert torch.equal(outputs(free, pixels), outputs(wide, pixels))
    operations = fit(teacher, pixels, limit=1e12)
    assert set(operations.bits.rows.values()) == {8}
    with pytest.raises(OptionError, match=r"a budget of 3 .* expected 4 or more"):
        fit(teacher, pixels, costs=path, limit=3)


def test_a_table_that_does_not_say_enough_is_refused(teacher, pixels, table):
    narrow = table(lines_of("1.0", lambda w, a: w * a, (2, 8), (2, 8)))
    with pytest.raises(OptionError, match=r"nothing for layer '1.0' at W4A4"):
        fit(teacher, pixels, costs=narrow)
    # With a limit, what --bits would cost need not be known.
    assert set(fit(teacher, pixels, costs=narrow, limit=16).bits.rows.values()) <= {2, 8}
    with pytest.raises(OptionError, match="costs=FILE and budget=bytes"):
        create("mixed", teacher.spec, {"costs": narrow, "budget": "bytes"}, Runtime())
    with pytest.raises(OptionError, match="search=uniform and limit=3"):
        create("mixed", teacher.spec, {"search": "uniform", "limit": 3}, Runtime())
    with pytest.raises(OptionError, match=r"no bits for '1.0.weight'"):
        fit(teacher, pixels, costs=table("2.2,8,8,1\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer,cost\na,4", "begins with 'layer,cost'; expected a header layer,weight_bits"),
        (HEADER, "has no line"),
        (HEADER + "a,4,4", "'a,4,4'; expected a layer"),
        (HEADER + "a,9,4,1", "'a,9,4,1'"),
        (HEADER + "a,4,4,nan", "'a,4,4,nan'"),
        (HEADER + "a,4,4,-1", "'a,4,4,-1'"),
        (HEADER + "a,4,4,x", "'a,4,4,x'"),
        (HEADER + "a,4,4,1\na,4,4,2", "two lines for 'a' at W4A4"),
        (HEADER + "a,4,4,1\na,8,8,2", "nothing for layer 'a' at W4A8"),
    ],
)
def test_files_that_are_no_costs(tmp_path, text, message):
    path = tmp_path / "costs.csv"
    path.write_text(text)
    with pytest.raises(OptionError, match=message):
        read_costs(str(path))
    with pytest.raises(OptionError, match="cannot be read"):
        read_costs(str(tmp_path))
