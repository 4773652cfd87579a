"""Which row of a student has how many bits, within the cost of a student of one width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zsq.core.imagespec import ImageSpec
from zsq.fitting.calibration import observe, searched_activation, weight_quantizer
from zsq.graph.vocabulary import calls_module
from zsq.placement.macs import IMAGE_BITS, Counting, operands_read
from zsq.placement.sites import Placement, row_name
from zsq.widths import FLOAT_BITS

Budget = Literal["operations", "bytes"]
# Name of a row -> its width.
Policy = Mapping[str, int]
# Name of a row -> width -> how far the network's output moves when this row alone has it.
Harm = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Part:
    """A layer or product on one image: multiply-adds, and for both operands the row that says its width, or a
    width that is fixed. `num_weights` is 0 of a product, and of a layer's second call."""

    macs: int
    left: str | int
    right: str | int
    num_weights: int = 0


@dataclass(frozen=True)
class Costs:
    """Of a network whose rows have the widths of a policy; `budget` says of what."""

    parts: tuple[Part, ...]
    budget: Budget

    def of(self, policy: Policy) -> int:
        """Bit operations, or bits of weights."""

        def width(operand: str | int) -> int:
            return operand if isinstance(operand, int) else policy.get(operand, FLOAT_BITS)

        if self.budget == "bytes":
            return sum(part.num_weights * width(part.left) for part in self.parts)
        return sum(part.macs * width(part.left) * width(part.right) for part in self.parts)


def parts_of(placement: Placement, norm: Tensor) -> tuple[Part, ...]:
    """Counted on `norm`, one image; quantizers may stand at the sites or not."""
    network = placement.network
    counting = Counting(network)
    with torch.no_grad():
        counting.run(norm)
    rows = {site.path: site.name for site in placement.sites}
    seen: set[str] = set()
    parts: list[Part] = []
    quantized = any(placement.of_kind("activation"))
    for node, read in operands_read(network).items():
        widths: list[str | int] = []
        for source, raw in read:
            unquantized = IMAGE_BITS if raw and quantized else FLOAT_BITS
            called = source.op == "call_module" and str(source.target) in rows
            widths.append(row_name(str(source.target)) if called else unquantized)
        if not calls_module(network, node, nn.Module):
            parts.append(Part(counting.macs[node], widths[0], widths[-1]))
            continue
        name = f"{node.target}.weight"
        numel = 0 if name in seen else network.get_parameter(name).numel()
        seen.add(name)
        parts.append(Part(counting.macs[node], name, widths[0], numel))
    return tuple(parts)


@torch.no_grad()
def harm_of(
    placement: Placement,
    rows: Sequence[str],
    widths: Sequence[int],
    spec: ImageSpec,
    pixels_NCHW: Tensor,
    device: str,
    divergence: Callable[[Any, Any], Tensor],
) -> dict[str, dict[int, float]]:
    """`divergence` of the float network's output from the same with one row quantized by rounding to nearest,
    for each of `rows` and `widths`. The sites are left empty."""
    network = placement.network
    seen = observe(placement, spec, pixels_NCHW, device)
    norm = spec.pixels_to_norm(pixels_NCHW.to(device))
    reference = network(norm)
    found: dict[str, dict[int, float]] = {}
    for site in (site for site in placement.sites if site.name in rows):
        found[site.name] = {}
        for bits in widths:
            if site.kind == "weight":
                quantizer = weight_quantizer(placement.weight(site), bits, search=True)
            else:
                quantizer = searched_activation(seen[site], bits)
            placement.put(site, quantizer.to(device))
            found[site.name][bits] = divergence(network(norm), reference).item()
        placement.put(site, nn.Identity())
    return found


def greedy(costs: Costs, start: Policy, harm: Harm, least: int, limit: int) -> dict[str, int]:
    """`start` with the rows of `harm` narrowed until the cost is at most `limit`: in each step by one bit the
    row that does the least harm for what it saves, of equal ones the first. What is then left of the budget
    goes to the rows that gain most by a bit."""
    policy = dict(start)

    def change(row: str, by: int) -> tuple[float, int]:
        """(harm, cost) that `by` bits more add."""
        width = policy[row]
        cost = costs.of(policy | {row: width + by}) - costs.of(policy)
        return harm[row][width + by] - harm[row][width], cost

    while costs.of(policy) > limit:
        narrower = [row for row in harm if policy[row] > least]
        if not narrower:
            break

        def price(row: str) -> float:
            added, cost = change(row, -1)
            return added / -cost if cost else float("inf")

        policy[min(narrower, key=price)] -= 1
    while True:
        gains = {}
        for row in harm:
            if policy[row] + 1 in harm[row]:
                added, cost = change(row, 1)
                if added < 0 < cost and costs.of(policy) + cost <= limit:
                    gains[row] = -added / cost
        if not gains:
            return policy
        policy[max(gains, key=gains.__getitem__)] += 1


def drawn(
    costs: Costs, start: Policy, rows: Sequence[str], least: int, limit: int, generator: torch.Generator
) -> dict[str, int]:
    """`start` with rows narrowed by one bit, drawn one after another, until the cost is at most `limit`."""
    policy = dict(start)
    while costs.of(policy) > limit:
        wider = [row for row in rows if policy[row] > least]
        if not wider:
            break
        policy[wider[int(torch.randint(len(wider), (), generator=generator))]] -= 1
    return policy
