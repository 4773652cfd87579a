"""The last layer of a library's classifier: how many classes a weights file has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def num_classes_in(state: Mapping[str, Tensor], network: nn.Module, num_classes: int) -> int:
    """Rows in `state` of the last layer of `network`, which has `num_classes`; these where it is missing, for
    the loading to complain."""
    matrices = [name for name, parameter in network.named_parameters() if parameter.ndim > 1]
    last = next((name for name in reversed(matrices) if len(network.get_parameter(name)) == num_classes), "")
    return len(state[last]) if last in state and state[last].ndim > 1 else num_classes
