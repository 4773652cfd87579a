"""A network as captured by torch.export: named layers and ATen operations, and what is known of each."""

from zsq.graph.capture import capture

__all__ = ["capture"]
