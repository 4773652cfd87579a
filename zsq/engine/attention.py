"""A teacher whose attention is tapped: logits, weights and outputs of every head, with their tokens.

Tensor suffixes beside those of the contract: W windows of an image, H heads, Q queries, K keys, D width of a
head.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zsq.contract import Teacher
from zsq.core.errors import NoAttentionError
from zsq.core.imagespec import ImageSpec
from zsq.core.layout import channels_last
from zsq.core.runtime import one_thread
from zsq.engine.chunked import InChunks, columns
from zsq.engine.executed import blank, layer_values
from zsq.engine.frozen import freeze_convolutions
from zsq.engine.outputs import PerImage, in_float32, joined, per_image
from zsq.engine.statistics import LayerSums
from zsq.graph import capture
from zsq.graph.recognise import Attention, attentions

Part = Literal["logits", "weights", "outputs"]

# Of one image's attention between two tokens, over a step.
BYTES_PER_WEIGHT = 20

# Network -> `chunk` and `num_weights` of its `AttentionTeacher`, by the spec of its images.
_sizes: WeakKeyDictionary[nn.Module, dict[ImageSpec, tuple[int, int]]] = WeakKeyDictionary()

# Of the tokens in front of the image's: a class token, one for distillation, up to eight registers.
MOST_PREFIX_TOKENS = 9


@dataclass(frozen=True)
class Tokens:
    """One axis of tokens: first `prefix` ones that are no place of the image, such as the class token, then
    those of a `grid` (rows, columns)."""

    prefix: int
    grid: tuple[int, int]

    @classmethod
    def of(cls, count: int, size: Sequence[int], windowed: bool) -> Tokens:
        """From their number alone: the fewest prefix tokens for which the rest is a grid of the image's shape
        (`size`, height and width), or in a window a square. One row where nothing fits."""
        height, width = (1, *size)[-2:]
        if windowed and math.isqrt(count) ** 2 == count:
            return cls(0, (math.isqrt(count), math.isqrt(count)))
        for exact in (True, False):
            for prefix in range(min(MOST_PREFIX_TOKENS + 1, count)):
                rows = max(1, round(math.sqrt((count - prefix) * height / width)))
                columns, rest = divmod(count - prefix, rows)
                stride = math.sqrt(height * width / (count - prefix))
                near = abs(rows - height / stride) < 1 and abs(columns - width / stride) < 1
                if not rest and (rows * width == columns * height if exact else near):
                    return cls(prefix, (rows, columns))
        return cls(0, (1, count))

    @property
    def places(self) -> int:
        """Tokens of the grid."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Block:
    """What is fixed of one attention: the user's module, windows and heads of an image, tokens."""

    name: str
    windows: int
    heads: int
    queries: Tokens
    keys: Tokens


@dataclass(frozen=True)
class BlockTap:
    """One attention in a teacher pass, float32; a part that nobody asked for is None.

    logits_NWHQK: queries times keys, scaled or not, before masks and biases. weights_NWHQK: their softmax.
    outputs_NWHQD: each head's mean of values, before heads are joined.
    """

    block: Block
    logits_NWHQK: Tensor | None = None
    weights_NWHQK: Tensor | None = None
    outputs_NWHQD: Tensor | None = None

    def of_images(self, chosen: slice) -> BlockTap:
        """Of some images of the batch."""
        parts = (self.logits_NWHQK, self.weights_NWHQK, self.outputs_NWHQD)
        return BlockTap(self.block, *(None if part is None else part[chosen] for part in parts))


class Untapped(nn.Module):
    """A private copy of a teacher of which nothing is measured but its outputs."""

    def __init__(self, teacher: Teacher) -> None:
        """Copy the network, channels_last."""
        super().__init__()
        self.names: list[str] = []
        self.spec = teacher.spec
        self.network = channels_last(copy.deepcopy(teacher.network))
        freeze_convolutions(self.network)
        one = self.spec.standard_to_norm(blank(self.network, self.spec))
        self.in_chunks = InChunks(self._outputs, layer_values(self.network, one))

    def forward(self, standard_NCHW: Tensor) -> tuple[PerImage, list[LayerSums]]:
        """Standard-space images -> outputs, and no statistics. Images that do not fit into memory at once go
        `in_chunks`."""
        if self.in_chunks.needed(standard_NCHW):
            return in_float32(joined(self.in_chunks(standard_NCHW))), []
        return in_float32(self._outputs(standard_NCHW)), []

    def _outputs(self, standard_NCHW: Tensor) -> PerImage:
        return per_image(self.network(self.spec.standard_to_norm(standard_NCHW)), len(standard_NCHW))


class AttentionTeacher(nn.Module):
    """A private copy of a teacher, as its captured graph, whose attention is measured.

    `blocks` are in the order of their execution. `num_weights` is how many pairs of tokens one image has in
    all heads.
    """

    def __init__(self, teacher: Teacher, parts: Sequence[Part], owner: str = "this method") -> None:
        """Tap `parts` of every attention with two query tokens or more.

        Raises:
            NoAttentionError: there is none that is a softmax between two products.
            UntraceableError: the network cannot be captured.
        """
        super().__init__()
        self.spec = teacher.spec
        self.names: list[str] = []
        self.parts = tuple(parts)
        self.network = channels_last(_captured(teacher))
        found = _understood(self.network, teacher, owner)
        with torch.no_grad():
            self.blocks, values = self._look(found)
        if not self.blocks:
            raise _no_attention(teacher, owner)
        self.in_chunks = InChunks(self._flat, values)
        self._latest: list[BlockTap] = []
        _sizes.setdefault(teacher.network, {})[teacher.spec] = self.in_chunks.most, self.num_weights

    def _look(self, found: Sequence[Attention]) -> tuple[list[Block], int]:
        """Tap what has two query tokens or more: those blocks, and the values of one image at all layers and
        taps."""
        (output,) = (node for node in self.network.graph.nodes if node.op == "output")
        returned = output.args[0]
        _tap(self.network, returned, found, ("weights", "outputs"))
        two = blank(self.network, self.spec).expand(2, *self.spec.shape)
        _, taps = self.network(self.spec.standard_to_norm(two))
        size = self.spec.network_size
        blocks = [_block(each, tap, len(two), size) for each, tap in zip(found, taps, strict=True)]
        kept = [index for index, block in enumerate(blocks) if block.queries.places > 1]
        self._attentions = [found[index] for index in kept]
        _tap(self.network, returned, self._attentions, self.parts)
        values = layer_values(self.network, self.spec.standard_to_norm(two))
        self.num_weights = sum(tap["weights"].numel() for tap in taps) // 2
        values += 4 * self.num_weights + sum(tap["outputs"].numel() for tap in taps)
        return [blocks[index] for index in kept], values // 2

    def forward(self, standard_NCHW: Tensor) -> tuple[PerImage, list[LayerSums]]:
        """Standard-space images -> outputs, and no statistics; `take` has the attention.

        Images that do not fit into memory at once go `in_chunks`.
        """
        if self.in_chunks.needed(standard_NCHW):
            made = self.in_chunks(standard_NCHW)
            outputs, flat = joined([returned for returned, *_ in made]), columns([rest for _, *rest in made])
        else:
            outputs, *flat = self._flat(standard_NCHW)
        parts = iter(flat)
        self._latest = [
            BlockTap(block, **{_FIELDS[part]: next(parts) for part in self.parts}) for block in self.blocks
        ]
        return in_float32(outputs), []

    def take(self) -> list[BlockTap]:
        """The attention of the latest teacher pass, which is then forgotten."""
        taken, self._latest = self._latest, []
        return taken

    def _flat(self, standard_NCHW: Tensor) -> tuple[PerImage, *tuple[Tensor, ...]]:
        count = len(standard_NCHW)
        returned, taps = self.network(self.spec.standard_to_norm(standard_NCHW))
        flat = [
            _by_image(attention.outputs(tap[part]) if part == "outputs" else tap[part], block, count)
            for attention, block, tap in zip(self._attentions, self.blocks, taps, strict=True)
            for part in self.parts
        ]
        return (per_image(returned, count), *flat)


_FIELDS: dict[Part, str] = {
    "logits": "logits_NWHQK",
    "weights": "weights_NWHQK",
    "outputs": "outputs_NWHQD",
}


def require_attention(teacher: Teacher, owner: str) -> None:
    """Nothing, where there is attention that `owner` can read.

    Raises:
        NoAttentionError: there is none, or none that zsq can read.
        UntraceableError: there may be some, but the network cannot be captured.
    """
    tapped_attention(teacher, (), owner)


def tapped_attention(teacher: Teacher, parts: Sequence[Part], owner: str) -> AttentionTeacher:
    """`AttentionTeacher(teacher, parts, owner)`; a network without any softmax is not captured.

    Raises:
        NoAttentionError, UntraceableError: as `require_attention`.
    """
    calls = _Softmaxes()
    with one_thread, torch.no_grad(), calls:
        teacher.logits(blank(teacher.network, teacher.spec))
    if not calls.found:
        raise _no_attention(teacher, owner)
    return AttentionTeacher(teacher, parts, owner)


def attention_bytes(teacher: Teacher, batch: int) -> int:
    """Memory that the attention of a step of `batch` images takes at its peak, about: logits, weights and
    gradient, and what a loss makes of them."""
    sizes = _sizes.setdefault(teacher.network, {})
    if teacher.spec not in sizes:
        AttentionTeacher(teacher, ())  # which notes them
    chunk, num_weights = sizes[teacher.spec]
    return BYTES_PER_WEIGHT * min(batch, chunk) * num_weights


class _Softmaxes(TorchDispatchMode):
    """Looks for a softmax or what contains one: cheaper than capturing a network that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.found |= any(part in name for part in ("softmax", "attention", "transformer_encoder"))
        return func(*args, **(kwargs or {}))


def _captured(teacher: Teacher) -> fx.GraphModule:
    return capture(teacher.network, teacher.example())


def _understood(network: fx.GraphModule, teacher: Teacher, owner: str) -> list[Attention]:
    found, unknown = attentions(network)
    if not found:
        raise _no_attention(teacher, owner, unknown)
    if unknown:
        left_out = f"attention of {teacher.name} that is not understood is left out: {', '.join(unknown)}"
        warnings.warn(left_out, stacklevel=4)
    return found


def _no_attention(teacher: Teacher, owner: str, unknown: Sequence[str] = ()) -> NoAttentionError:
    where = f", such as that at '{unknown[0]}'" if unknown else ""
    return NoAttentionError(
        f"teacher '{teacher.name}' has no attention that zsq can read{where}",
        f"a softmax between a product of queries and keys and one with values, which {owner} reads",
    )


def _tap(network: fx.GraphModule, returned: Any, found: Sequence[Attention], parts: Sequence[Part]) -> None:
    """Let the network return `returned` and `parts` of each attention."""
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    nodes = [{"logits": a.logits, "weights": a.weights, "outputs": a.product} for a in found]
    output.args = ((returned, tuple({part: each[part] for part in parts} for each in nodes)),)
    network.recompile()


def _block(attention: Attention, tap: dict[str, Tensor], images: int, size: Sequence[int]) -> Block:
    """From the shapes that the weights of `images` images have: (..., Q, K), heads on the axis before; of
    three axes alone, all of an image's rows are heads."""
    *leading, queries, keys = tap["weights"].shape
    rows = math.prod(leading) // images
    heads = leading[-1] if len(leading) > 1 else rows
    windows = rows // heads
    axes = (Tokens.of(count, size, windows > 1) for count in (queries, keys))
    return Block(attention.module, windows, heads, *axes)


def _by_image(part: Tensor, block: Block, images: int) -> Tensor:
    """(..., Q, K or D) -> (N, W, H, Q, K or D), float32."""
    rows = part.reshape(images, block.windows, block.heads, *part.shape[-2:])
    return rows.float() if rows.dtype == torch.bfloat16 else rows
