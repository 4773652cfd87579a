"""Where the first axis is images times rows, as in MobileViT: views between which it is the images' alone."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

from zsq.graph.vocabulary import name_of
from zsq.placement.sites import Placement
from zsq.placement.units import is_addition, shape_of

# They keep the order of all values of a tensor.
RESHAPES = frozenset(("reshape", "view", "_unsafe_view", "flatten", "unflatten", "contiguous", "clone"))


def view_by_image(placement: Placement, norm_NCHW: Tensor) -> None:
    """View values on a residual stream as (N, rows, ...) and back as (N rows, ...), in place: units can begin
    and end between the two.

    Only where the rows of one image lie next to each other. The network computes the same as before.

    Args:
        norm_NCHW: an image, from which shapes are taken.
    """
    network = placement.network
    asked = [node for node in network.graph.nodes if _is_residual(network, node) and _has_rows(node)]
    if not asked:
        return
    with torch.no_grad():
        ShapeProp(network).propagate(norm_NCHW)
    for node in asked:
        if _in_order(network, node):
            _insert_views(network.graph, node)
    network.graph.lint()
    network.recompile()


def _is_residual(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node adds two tensors, or gives one that is added and read elsewhere."""
    shortcut = len(node.users) > 1 and any(is_addition(network, user) for user in node.users)
    return shortcut or is_addition(network, node)


def _has_rows(node: fx.Node) -> bool:
    """Whether of its lengths the first alone depends on the number of images, and is not that number."""
    first, *others = node.meta.get("shape", ()) or (0,)
    return first is None and None not in others and not node.meta["images_first"]


def _in_order(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether all values of the first image come before those of the second.

    A sum has the order of what is added: otherwise it would mix images.
    """
    if node.op == "placeholder" or node.meta.get("images_first", False):
        return True
    if name_of(network, node) in RESHAPES:
        return _in_order(network, node.all_input_nodes[0])
    return is_addition(network, node) and any(
        shape_of(source) == shape_of(node) and _in_order(network, source) for source in node.all_input_nodes
    )


def _insert_views(graph: fx.Graph, node: fx.Node) -> None:
    rows, *others = shape_of(node)
    reshape = torch.ops.aten.reshape.default
    with graph.inserting_after(node):
        by_image = graph.call_function(reshape, (node, [-1, rows, *others]))
    with graph.inserting_after(by_image):
        by_row = graph.call_function(reshape, (by_image, [-1, *others]))
    by_row.meta = dict(node.meta)
    by_image.meta = node.meta | {"shape": (None, rows, *others), "images_first": True}
    del by_image.meta["tensor_meta"]
    node.replace_all_uses_with(by_row, delete_user_cb=lambda user: user is not by_image)
