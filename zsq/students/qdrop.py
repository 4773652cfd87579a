"""QDrop: rounding and activation steps together, with the quantization of activations dropped at random."""

from __future__ import annotations

from typing import ClassVar

from zsq.contract import Facts
from zsq.core.options import Options
from zsq.fitting.dropping import DEVIATIONS, DroppingOptions, DroppingStudent


class QDrop(DroppingStudent):
    """Half of the elements that enter a block come from the quantized network, half from the float one."""

    name = "qdrop"
    facts = Facts(
        paper="QDrop, Wei et al. 2022 (arXiv:2203.05740)",
        summary="learned rounding and activation steps, block by block, activations quantized at random",
        deviations=DEVIATIONS,
    )
    options_class: ClassVar[type[Options]] = DroppingOptions
