"""The agent of HAQ: what it learns, and the policies that come out of it."""

import math

import pytest
import torch
from tiny_students import outputs
from toys import depthwise, shared_teacher, structured_images

import zsq
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.fitting.agent import Agent, truncated_normal
from zsq.fitting.haq import Search, chosen, features_of
from zsq.fitting.mixing import Costs, Part, parts_of
from zsq.placement.sites import place
from zsq.saved.cost import student_cost
from zsq.students import create
from zsq.widths import Bits

ROWS = "abcde"
PARTS = (Part(100, "a", "b", 10), Part(50, "c", "d", 40), Part(20, "e", 8, 5))
CHOICES = dict.fromkeys(ROWS, range(2, 9))
START = dict.fromkeys(ROWS, 8)
FEATURES = {row: torch.tensor([index / 4, index % 2]) for index, row in enumerate(ROWS)}


class Told:
    """Diverges by a rule, and keeps what it was asked."""

    def __init__(self, rule):
        self.rule, self.asked = rule, []

    def diverges(self, policy):
        self.asked.append(dict(policy))
        return self.rule(policy)


def search(rule, limit=math.inf, seed=0, episodes=25, rows=ROWS):
    told = Told(rule)
    found = Search(Costs(PARTS), CHOICES, limit, told, 1.0)
    return found.run({row: FEATURES[row] for row in rows}, START, episodes, seed), told


def test_an_agent_that_is_rewarded_for_low_cost_narrows_everything():
    costs = Costs(PARTS)
    found, told = search(lambda policy: costs.of(policy), episodes=90, rows="abc")
    assert found == START | dict.fromkeys("abc", 2)
    early, late = (sum(map(costs.of, part)) / 20 for part in (told.asked[:20], told.asked[-20:]))
    assert late < 0.8 * early


def test_policies_meet_the_budget_and_the_seed_decides():
    costs = Costs(PARTS)
    limit = costs.of(dict.fromkeys(ROWS, 4))

    def rule(policy):
        return sum(4.0**-bits for bits in policy.values())

    (found, told), (same, _), (_, other) = (search(rule, limit, seed) for seed in (0, 0, 1))
    assert all(costs.of(policy) <= limit for policy in told.asked)
    assert rule(found) == min(map(rule, told.asked)) and found == same
    assert told.asked != other.asked


def test_the_last_rows_are_narrowed_first():
    costs = Costs(PARTS)
    found = Search(costs, CHOICES, costs.of(START) - 1, Told(None), 1.0)
    assert found.within(START, list(ROWS)) == START | {"e": 7}
    tighter = Search(costs, CHOICES, costs.of(START | {"e": 7}) - 1, Told(None), 1.0)
    assert tighter.within(START, list(ROWS)) == START | {"e": 7, "d": 7}
    none = Search(costs, CHOICES, 0, Told(None), 1.0)
    assert set(none.within(START, list(ROWS)).values()) == {2}


def test_numbers_become_widths_with_equal_shares():
    drawn = [chosen([2, 4, 8], index / 300) for index in range(301)]
    assert [drawn.count(width) for width in (2, 4, 8)] == [100, 100, 101]


def test_noise_stays_inside_and_is_normal():
    draws = [truncated_normal((index + 0.5) / 1000, 0.4, 0.1) for index in range(1000)]
    assert torch.tensor(draws).mean().item() == pytest.approx(0.4, abs=1e-3)
    assert torch.tensor(draws).std().item() == pytest.approx(0.1, abs=2e-3)
    assert truncated_normal(0.0, 0.9, 0.5) == 0 and truncated_normal(1.0, 0.9, 0.5) == 1


def test_an_agent_learns_the_best_number_and_leaves_the_global_stream():
    before = torch.get_rng_state()
    agent = Agent(1, 1, torch_generator(0, 0, "test"))
    state = torch.zeros(1, 1)
    for _ in range(120):
        action = agent.choose(state[0])
        agent.learn(state, [action], -abs(action - 0.8))
    assert abs(sum(agent.choose(state[0]) for _ in range(20)) / 20 - 0.8) < 0.2
    assert torch.equal(before, torch.get_rng_state())


def test_features_tell_layers_apart():
    teacher = shared_teacher(depthwise)
    placement = place(teacher.network, teacher.example(), Bits(4, 4), fold=True)
    parts = parts_of(placement, teacher.example()[:1])
    rows = [site.name for site in placement.sites]
    found = features_of(placement, parts, dict.fromkeys(rows, (2,)))
    assert list(found)[:3] == ["0.0.weight", "1.0.weight", "1.0.input"] and found.keys() == set(rows)
    assert found["1.0.weight"][0] == 1 and found["0.0.weight"][0] == 0
    assert found["1.0.weight"][-1] == 0 and found["1.0.input"][-1] == 1
    table = torch.stack(list(found.values()))
    assert table.amin() == 0 and table.amax() == 1


def test_a_student_of_the_agent_costs_no_more_than_uniform_bits(tmp_path):
    teacher = shared_teacher(depthwise)
    pixels = teacher.spec.standard_to_pixels(structured_images((8, *teacher.spec.shape)))

    def fit(**options):
        student = create("mixed", teacher.spec, options, Runtime())
        return student.fit(teacher, pixels, Bits(4, 4), first_last=8)

    fitted, same = (fit(search="haq", episodes=5) for _ in range(2))
    assert fitted.bits == same.bits and len(set(fitted.bits.rows.values())) > 1
    assert student_cost(fitted).bit_operations <= student_cost(fit(search="uniform")).bit_operations
    zsq.save_student(fitted, teacher, tmp_path)
    assert torch.equal(outputs(zsq.load_student(tmp_path), pixels), outputs(fitted, pixels))
