"""Parallel branches merged into one convolution (RepVGG, Ding et al., CVPR 2021), and one split in two."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zsq.graph.layers import TrainableConv2d
from zsq.placement.units import is_addition

# A branch that adds to what a convolution gives: its kernel and bias in float64.
Branch = tuple[Tensor, Tensor]


def merge_branches(module: fx.GraphModule) -> int:
    """Merge, in place, additions of branches that read one tensor: 3x3 and 1x1 convolutions and identities,
    with or without a BN of stored statistics; the number of additions that are gone.

    The network computes the same in eval mode; BNs after convolutions are to be folded before.
    """
    additions = [node for node in module.graph.nodes if is_addition(module, node)]
    merged = sum(_merge(module, node) for node in additions)
    module.recompile()
    return merged


def _merge(module: fx.GraphModule, addition: fx.Node) -> bool:
    operands = [node for node in addition.args if isinstance(node, fx.Node)]
    if len(operands) != 2 or addition.kwargs:
        return False
    # The wider kernel keeps its name.
    for kernel_size in ((3, 3), (1, 1)):
        for first, second in (operands, operands[::-1]):
            conv = _called(module, first)
            if not isinstance(conv, nn.Conv2d) or conv.kernel_size != kernel_size or not _plain(conv):
                continue
            branch = _branch(module, second, first.all_input_nodes[0], conv)
            if branch is not None:
                module.set_submodule(str(first.target), _merged(conv, branch))
                addition.replace_all_uses_with(first)
                module.graph.erase_node(addition)
                if not second.users:
                    module.graph.erase_node(second)
                    module.delete_submodule(str(second.target))
                return True
    return False


def _called(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that `node` calls, where nothing else does and the addition alone reads what it gives."""
    calls = [each for each in module.graph.nodes if each.op == "call_module" and each.target == node.target]
    alone = node.op == "call_module" and len(calls) == 1 and len(node.users) == 1
    return module.get_submodule(str(node.target)) if alone else None


def _plain(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.padding)
    return (
        shape in (((3, 3), (1, 1)), ((1, 1), (0, 0)))
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
    )


def _branch(module: fx.GraphModule, node: fx.Node, source: fx.Node, conv: nn.Conv2d) -> Branch | None:
    """What `node` adds to `conv`, which reads `source`; None where that is no kernel of the same shape."""
    keeps_shape = conv.stride == (1, 1) and conv.in_channels == conv.out_channels
    layer = nn.Identity() if node is source else _called(module, node)
    if layer is None or (node is not source and node.all_input_nodes != [source]):
        return None
    if isinstance(layer, nn.Identity) and keeps_shape:
        ones = torch.ones(conv.out_channels, dtype=torch.float64, device=conv.weight.device)
        return _identity(conv, ones), torch.zeros_like(ones)
    if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and keeps_shape:
        return _normalised_identity(conv, layer)
    if isinstance(layer, nn.Conv2d) and _plain(layer) and _alike(conv, layer):
        return layer.weight.detach().double(), _bias(layer)
    return None


def _alike(conv: nn.Conv2d, other: nn.Conv2d) -> bool:
    facts = ("in_channels", "out_channels", "stride", "groups")
    return all(getattr(conv, fact) == getattr(other, fact) for fact in facts)


def _normalised_identity(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Branch:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return _identity(conv, scale), shift if norm.bias is None else shift + norm.bias.detach().double()


def _identity(conv: nn.Conv2d, scale_C: Tensor) -> Tensor:
    """The 1x1 kernel that scales each channel."""
    per_group = conv.in_channels // conv.groups
    kernel = scale_C.new_zeros(conv.out_channels, per_group, 1, 1)
    channels = torch.arange(conv.out_channels, device=scale_C.device)
    kernel[channels, channels % per_group, 0, 0] = scale_C
    return kernel


def _bias(conv: nn.Conv2d) -> Tensor:
    return (
        conv.weight.new_zeros(conv.out_channels).double()
        if conv.bias is None
        else conv.bias.detach().double()
    )


def _merged(conv: nn.Conv2d, branch: Branch) -> nn.Conv2d:
    kernel, bias = branch
    margin = (conv.kernel_size[0] - kernel.shape[-1]) // 2
    weight = conv.weight.detach().double() + F.pad(kernel, [margin] * 4)
    return _conv_like(conv, weight, _bias(conv) + bias)


def _conv_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, padding: object = None) -> nn.Conv2d:
    """`conv` with another kernel, of the kernel's size."""
    layer = TrainableConv2d(
        conv.in_channels,
        conv.out_channels,
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding if padding is None else padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        bias is not None,
        conv.padding_mode,
        device="meta",
    )
    layer.weight = nn.Parameter(weight.to(conv.weight.dtype).contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    return layer.eval()


def split_centres(module: fx.GraphModule) -> tuple[str, ...]:
    """Split, in place, each 3x3 convolution P into its centre, a convolution P_coarse, and the eight others,
    which stay at P with the bias; the names P.

    P_coarse is 1x1 where the centre meets every position that the image has; else it keeps the 3x3 form.
    """
    split = {}
    for node in list(module.graph.nodes):
        conv = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (3, 3):
            continue
        name = str(node.target)
        if name not in split:
            split[name] = f"{name}_coarse"
            module.add_submodule(split[name], _take_centre(conv))
        with module.graph.inserting_after(node):
            coarse = module.graph.call_module(split[name], node.args, node.kwargs)
        with module.graph.inserting_after(coarse):
            total = module.graph.call_function(torch.ops.aten.add.Tensor, (node, coarse))
        node.replace_all_uses_with(total, delete_user_cb=lambda user, total=total: user is not total)
    module.recompile()
    return tuple(split)


def _take_centre(conv: nn.Conv2d) -> nn.Conv2d:
    weight = conv.weight.detach().clone()
    centre = weight[:, :, 1:2, 1:2].clone()
    weight[:, :, 1, 1] = 0
    conv.weight = nn.Parameter(weight, requires_grad=False)
    if conv.padding in ("same", conv.dilation):
        return _conv_like(conv, centre, None, padding=0)
    return _conv_like(conv, F.pad(centre, [1] * 4), None)
