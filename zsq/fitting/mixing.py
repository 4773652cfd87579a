"""Which row of a student has how many bits, within the cost of a student of one width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zsq.core.errors import OptionError
from zsq.core.imagespec import ImageSpec
from zsq.fitting.calibration import observe, searched_activation, searched_weight
from zsq.fitting.cost_table import CostTable
from zsq.graph.vocabulary import calls_module
from zsq.placement.macs import IMAGE_BITS, Counting, operands_read
from zsq.placement.sites import Placement, Site, row_name
from zsq.widths import FLOAT_BITS

Budget = Literal["operations", "bytes"]
# Name of a row -> its width.
Policy = Mapping[str, int]
# Name of a row -> the widths that it may have, rising.
Choices = Mapping[str, Sequence[int]]
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
    name: str = ""


@dataclass(frozen=True)
class Costs:
    """Of a network whose rows have the widths of a policy: what a table says, or else as `budget` says."""

    parts: tuple[Part, ...]
    budget: Budget = "operations"
    table: CostTable | None = None

    def __post_init__(self) -> None:
        """Check the layers of the table.

        Raises:
            OptionError: one that the network does not have.
        """
        names = [part.name for part in self.parts]
        unknown = next((name for name in self.table.costs if name not in names), None) if self.table else None
        if self.table is not None and unknown is not None:
            near = (get_close_matches(unknown, names, 1) or names)[0]
            found = f"costs {self.table.path}: '{unknown}' is no layer of this network"
            raise OptionError(found, f"'{near}'")

    def of(self, policy: Policy) -> float:
        """Bit operations, or bytes of weights, or the sum of a table's costs; of a layer that is called more
        than once, that of its dearest call."""

        def width(operand: str | int) -> int:
            return operand if isinstance(operand, int) else policy.get(operand, FLOAT_BITS)

        if self.table is not None:
            dearest: dict[str, float] = {}
            for part in self.parts:
                if part.name in self.table.costs:
                    cost = self.table.of(part.name, width(part.left), width(part.right))
                    dearest[part.name] = max(cost, dearest.get(part.name, 0.0))
            return sum(dearest.values())
        if self.budget == "bytes":
            return sum(part.num_weights * width(part.left) for part in self.parts) / 8
        return sum(part.macs * width(part.left) * width(part.right) for part in self.parts)

    def choices(self, rows: Sequence[str], least: int, most: int) -> dict[str, list[int]]:
        """The widths from `least` to `most` that each row can have: of a table, those that it names.

        Raises:
            OptionError: a row without any.
        """
        found = {row: set(range(least, most + 1)) for row in rows}
        if self.table is not None:
            for part in self.parts:
                for side, row in enumerate((part.left, part.right)):
                    if isinstance(row, str) and row in found:
                        found[row] &= self.table.widths(part.name, side)
                        if not found[row]:
                            what = f"costs {self.table.path}: no bits for '{row}' in layer '{part.name}'"
                            raise OptionError(what, f"bits of {least}..{most}, the same in all its layers")
        return {row: sorted(widths) for row, widths in found.items()}


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
            named = next((width.rpartition(".")[0] for width in widths if isinstance(width, str)), node.name)
            parts.append(Part(counting.macs[node], widths[0], widths[-1], name=named))
            continue
        name = f"{node.target}.weight"
        numel = 0 if name in seen else network.get_parameter(name).numel()
        seen.add(name)
        parts.append(Part(counting.macs[node], name, widths[0], numel, str(node.target)))
    return tuple(parts)


class Rounded:
    """A network some rows of which are rounded to nearest, on grids of the least error on some images."""

    def __init__(
        self,
        placement: Placement,
        spec: ImageSpec,
        pixels_NCHW: Tensor,
        device: str,
        divergence: Callable[[Any, Any], Tensor],
    ) -> None:
        """Look at the tensors of the float network; the sites are left empty."""
        self._placement, self._device, self._divergence = placement, device, divergence
        self._seen = observe(placement, spec, pixels_NCHW, device)
        self._norm = spec.pixels_to_norm(pixels_NCHW.to(device))
        with torch.no_grad():
            self._reference = placement.network(self._norm)
        self._quantizers: dict[tuple[str, int], nn.Module] = {}

    @torch.no_grad()
    def diverges(self, policy: Policy) -> float:
        """`divergence` of the output from the float network's when the rows of `policy` are rounded."""
        for site in self._placement.sites:
            if site.name in policy:
                self._placement.put(site, self._quantizer(site, policy[site.name]))
        found = self._divergence(self._placement.network(self._norm), self._reference).item()
        for site in self._placement.sites:
            self._placement.put(site, nn.Identity())
        return found

    def _quantizer(self, site: Site, bits: int) -> nn.Module:
        if (site.name, bits) not in self._quantizers:
            if site.kind == "weight":
                made = searched_weight(self._placement.weight(site), bits)
            else:
                made = searched_activation(self._seen[site], bits)
            self._quantizers[site.name, bits] = made.to(self._device)
        return self._quantizers[site.name, bits]


def harm_of(rounded: Rounded, choices: Choices) -> dict[str, dict[int, float]]:
    """What each row alone does at each of its widths."""
    return {row: {bits: rounded.diverges({row: bits}) for bits in widths} for row, widths in choices.items()}


def greedy(costs: Costs, harm: Harm, start: Policy, limit: float) -> dict[str, int]:
    """`start` with the rows of `harm` narrowed until the cost is at most `limit`: in each step to the next of
    its widths the row that does the least harm for what it saves, of equal ones the first. What is then left
    of the budget goes to the rows that gain most by a step back."""
    policy = dict(start)

    def change(row: str, width: int) -> tuple[float, float]:
        """(harm, cost) that another width adds."""
        cost = costs.of(policy | {row: width}) - costs.of(policy)
        return harm[row][width] - harm[row][policy[row]], cost

    while costs.of(policy) > limit:
        prices = {}
        narrower = neighbours(harm, policy, -1)
        for row, width in narrower.items():
            added, cost = change(row, width)
            prices[row] = added / -cost if cost < 0 else float("inf")
        if not prices:
            break
        row = min(prices, key=prices.__getitem__)
        policy[row] = narrower[row]
    while True:
        gains = {}
        wider = neighbours(harm, policy, 1)
        for row, width in wider.items():
            added, cost = change(row, width)
            if added < 0 < cost and costs.of(policy) + cost <= limit:
                gains[row] = -added / cost
        if not gains:
            return policy
        row = max(gains, key=gains.__getitem__)
        policy[row] = wider[row]


def drawn(
    costs: Costs, choices: Choices, start: Policy, limit: float, generator: torch.Generator
) -> dict[str, int]:
    """`start` with rows narrowed to their next width, drawn one after another, until the cost is at most
    `limit`."""
    policy = dict(start)
    while costs.of(policy) > limit:
        narrower = neighbours(choices, policy, -1)
        if not narrower:
            break
        row = list(narrower)[int(torch.randint(len(narrower), (), generator=generator))]
        policy[row] = narrower[row]
    return policy


def neighbours(choices: Mapping[str, Iterable[int]], policy: Policy, by: int) -> dict[str, int]:
    """Row -> its next width below (`by` -1) or above (1) the policy's, of the rows that have one."""
    beyond = {row: [w for w in widths if (w - policy[row]) * by > 0] for row, widths in choices.items()}
    return {row: min(widths, key=lambda w: w * by) for row, widths in beyond.items() if widths}
