"""Batch normalisation folded into the layer before it."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


def fold_batch_norms(module: fx.GraphModule) -> None:
    """Fold, in place, each BN with stored statistics that is the only consumer of a Conv2d or Linear.

    The network computes the same in eval mode. Other BNs stay where they are, as float affine operations.
    """
    times_called = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    for node in module.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        name, norm_name = str(source.target), str(node.target)
        fused = _fused(module.get_submodule(name), module.get_submodule(norm_name))
        if fused is None or times_called[name] != 1 or times_called[norm_name] != 1:
            continue
        module.set_submodule(name, fused)
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        module.delete_submodule(norm_name)
    module.recompile()


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """One layer for both, None where they do not fold."""
    if getattr(norm, "running_mean", None) is None:
        return None
    if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        return fuse_conv_bn_eval(layer, norm)
    if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
        return fuse_linear_bn_eval(layer, norm)
    return None
