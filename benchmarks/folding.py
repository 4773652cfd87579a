"""What folding BN into the convolutions could save: `python benchmarks/folding.py`.

A folded network still needs the sums over each BN's input; all that falls away is the scale and shift. So the
step is timed beside one whose BN layers compute their sums alone and hand their input on: no folding can save
more. Networks have random weights, whose BN layers in eval mode change next to nothing. CPU seconds of the
process, the two steps in turns; kept in benchmarks/results/folding.json.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import typer
from common import Results
from throughput import NETWORKS, Steps, zsq_steps
from torch import Tensor

from zsq.engine import frozen


class SumsAlone(frozen.Normalised):
    """`Normalised` without its scale and shift."""

    @staticmethod
    def forward(
        ctx: Any, activations: Tensor, scale_C: Tensor, shift_C: Tensor, mean_C: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The input itself, and its sums."""
        ctx.save_for_backward(activations, mean_C)
        rest = [1] * (activations.dim() - 2)
        shifted = activations.to(mean_C.dtype) - mean_C.view(1, -1, *rest)
        s1_NC, s2_NC = (part.flatten(2).sum(2) for part in (shifted, shifted.square()))
        return activations.clone(), s1_NC, s2_NC

    @staticmethod
    def backward(ctx: Any, of_y: Tensor, of_s1_NC: Tensor, of_s2_NC: Tensor) -> tuple[Tensor | None, ...]:
        """d/da = g_y + g_s1 + 2 g_s2 (a - mean)."""
        activations, mean_C = ctx.saved_tensors
        rest = [1] * (activations.dim() - 2)
        slope = (2 * of_s2_NC).view(*of_s2_NC.shape, *rest)
        offset = (of_s1_NC - 2 * of_s2_NC * mean_C).view(*of_s1_NC.shape, *rest)
        gradient = of_y.to(mean_C.dtype) + (activations.to(mean_C.dtype) * slope + offset)
        return gradient.to(activations.dtype), None, None, None


def without_scaling(network: str) -> Steps:
    """As `zsq_steps`, BN layers computing their sums alone; compiled before the plain layers come back."""
    plain, frozen.Normalised = frozen.Normalised, SumsAlone  # type: ignore[misc]
    try:
        steps = zsq_steps(network, compile=True)
        steps(1)
    finally:
        frozen.Normalised = plain  # type: ignore[misc]
    return steps


def cpu_seconds(steps: Steps, count: int) -> float:
    """Of `count` steps, without what surrounds them."""
    start = time.process_time()
    steps(1)
    middle = time.process_time()
    steps(count + 1)
    return time.process_time() - middle - (middle - start)


def main(
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1)] = 7,
    steps: Annotated[int, typer.Option(help="Steps per round.", min=1)] = 10,
) -> None:
    """Measure each network and keep the share of a step's time that scale and shift take."""
    results, rows = Results("folding", "python benchmarks/folding.py"), {}
    for network in NETWORKS:
        plain, bare = zsq_steps(network, compile=True), without_scaling(network)
        plain(1)
        pairs = [(cpu_seconds(plain, steps), cpu_seconds(bare, steps)) for _ in range(rounds)]
        shares = [100 * (1 - without / whole) for whole, without in pairs]
        rows[network] = {"saved_percent": shares, "median": statistics.median(shares)}
        typer.echo(f"{network}: at most {rows[network]['median']:.1f} % of a step")
        results.write(rows=rows)


if __name__ == "__main__":
    typer.run(main)
