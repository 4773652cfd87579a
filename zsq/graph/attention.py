"""scaled_dot_product_attention as the operations that it stands for: both of its products are sites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def attention(
    given: dict[str, Any],
    argument: Callable[[Any], Any],
    constant: Callable[[str, Tensor], fx.Node],
    emit: Callable[..., fx.Node],
) -> fx.Node:
    """Two products with a softmax between them.

    Args:
        given: the call's arguments by name, as nodes of the program.
        argument: node of the program -> of the graph.
        constant: name and value -> node of the graph.
        emit: overload and arguments -> node of the graph.
    """
    query, key, value = (argument(given[name]) for name in ("query", "key", "value"))
    queries, keys = (given[name].meta["val"].shape for name in ("query", "key"))
    if given.get("enable_gqa"):
        repeat, times = aten.repeat_interleave.self_int, queries[-3] // keys[-3]
        key, value = (emit(repeat, (each, times, -3)) for each in (key, value))
    scale = given["scale"] if given.get("scale") is not None else queries[-1] ** -0.5
    scaled = emit(aten.mul.Tensor, (query, scale))
    scores = emit(aten.matmul.default, (scaled, emit(aten.transpose.int, (key, -2, -1))))
    if given.get("is_causal"):
        later = torch.ones(queries[-2], keys[-2], dtype=torch.bool).triu(1)
        scores = _hidden(scores, constant(f"later_{queries[-2]}_{keys[-2]}", later), emit)
    mask = given.get("attn_mask")
    if mask is not None and mask.meta["val"].dtype == torch.bool:
        scores = _hidden(scores, emit(aten.logical_not.default, (argument(mask),)), emit)
    elif mask is not None:
        scores = emit(aten.add.Tensor, (scores, argument(mask)))
    weights = emit(aten.softmax.int, (scores, -1))
    return emit(aten.matmul.default, (weights, value))


def _hidden(scores: fx.Node, where: fx.Node, emit: Callable[..., fx.Node]) -> fx.Node:
    return emit(aten.masked_fill.Scalar, (scores, where, float("-inf")))
