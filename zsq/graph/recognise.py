"""Attention found in a captured graph: a softmax between two products of activations.

`capture` writes every attention out that way, whichever function or layer computed it: torch's
scaled_dot_product_attention and MultiheadAttention, and code of libraries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx

from zsq.graph.vocabulary import image_nodes, name_of, operands, operation

SOFTMAX = ("softmax", "_softmax", "_safe_softmax")
# They scale, shift or hide logits, beside what only moves them.
_ELEMENTWISE = {"add", "sub", "mul", "div", "masked_fill", "where", "clamp", "clamp_min", "clamp_max"}


@dataclass(frozen=True)
class Attention:
    """One attention by the nodes that compute its parts; `module` is the user's module that it is in.

    `logits` gives queries times keys, (..., Q, K), before masks and biases; `weights` their softmax.
    `product` gives weights times values in any order of axes, see `outputs`.
    """

    module: str
    logits: fx.Node
    weights: fx.Node
    product: fx.Node
    transposed: bool
    equation: str | None

    def outputs(self, product: Tensor) -> Tensor:
        """What `product` gives as (..., Q, D)."""
        if self.equation is not None:
            inputs, _, output = self.equation.replace(" ", "").partition("->")
            weights = inputs.split(",")[self.transposed]
            rest = [axis for axis in output if axis not in weights[:-1]]
            return product.permute([output.index(axis) for axis in (*weights[:-1], *rest)])
        return product.transpose(-2, -1) if self.transposed else product


def attentions(network: fx.GraphModule) -> tuple[list[Attention], list[str]]:
    """Every attention of a captured network in the order of its softmax; and the modules with a softmax that
    weighs a product, but not by a product of two activations: attention that we do not understand."""
    following = image_nodes(network.graph.nodes, network)
    found, unknown = [], []
    for node in network.graph.nodes:
        if node not in following or name_of(network, node) not in SOFTMAX:
            continue
        weighted = _weighted(network, node, following)
        if weighted is None:
            continue
        product, position, turned = weighted
        logits = _logits(network, node, following) if _over_last(node) else None
        module = str(node.meta.get("module", "")) or node.name
        if logits is None:
            unknown.append(module)
            continue
        equation = str(product.args[0]) if name_of(network, product) == "einsum" else None
        transposed = position == 1 if equation is not None else turned
        found.append(Attention(module, logits, node, product, transposed, equation))
    return found, unknown


def _over_last(node: fx.Node) -> bool:
    axis, rank = node.args[1], len(node.meta.get("shape", ()))
    return axis in (-1, rank - 1)


def _weighted(
    network: fx.GraphModule, softmax: fx.Node, following: set[fx.Node]
) -> tuple[fx.Node, int, bool] | None:
    """The product that a softmax's output enters, as which operand, and whether its output is transposed."""
    waiting, seen = deque([softmax]), {softmax}
    while waiting:
        node = waiting.popleft()
        for user in node.users:
            given = operands(network, user)
            if len(given) == 2 and node in given and all(each in following for each in given):
                position = given.index(node)
                return user, position, position == 1
            if user not in seen and (_moves(network, user) or name_of(network, user) in _ELEMENTWISE):
                seen.add(user)
                waiting.append(user)
    return None


def _logits(network: fx.GraphModule, softmax: fx.Node, following: set[fx.Node]) -> fx.Node | None:
    """The product behind a softmax, through what scales, shifts and hides it: of two activations where there
    is one, since a bias may be the product of one and a table; else of learned queries."""
    waiting, seen = deque(_inputs(softmax, following)), {softmax}
    products = []
    while waiting:
        node = waiting.popleft()
        given = operands(network, node)
        if len(given) == 2:
            products.append((sum(each in following for each in given), node))
        elif node not in seen and (_moves(network, node) or name_of(network, node) in _ELEMENTWISE):
            seen.add(node)
            waiting.extend(_inputs(node, following))
    return max(products, key=lambda found: found[0])[1] if products else None


def _inputs(node: fx.Node, following: set[fx.Node]) -> Iterator[fx.Node]:
    return (source for source in node.all_input_nodes if source in following)


def _moves(network: fx.GraphModule, node: fx.Node) -> bool:
    known = operation(network, node)
    return known.kind == "view" or known.moments == "cast" or name_of(network, node) in ("expand", "slice")
