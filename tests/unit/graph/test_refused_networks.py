"""What torch.export cannot take ends in one line, and nothing else is said; threads wait for each other."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from zsq.core.errors import UntraceableError
from zsq.graph import capture


class Sorted(nn.Module):
    """How many values there are depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.conv(x)
        kept = found[found > 0]
        return kept.topk(5).values if len(kept) > 5 else kept


def test_nothing_but_the_one_line_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UntraceableError, match="cannot be captured at test_refused"):
        capture(Sorted(), torch.randn(2, 3, 8, 8))
    assert not "".join(capfd.readouterr())


def test_what_was_refused_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = Sorted(), torch.randn(2, 3, 8, 8)
    with pytest.raises(UntraceableError) as first:
        capture(network, x)
    monkeypatch.setattr("torch.export.export", None)
    with pytest.raises(UntraceableError) as second:
        capture(network, x)
    assert str(first.value) == str(second.value)


def test_threads_capture_one_after_another() -> None:
    networks = [nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU()) for width in (2, 3, 4, 5)]
    x = torch.randn(2, 3, 8, 8)
    with ThreadPoolExecutor(4) as threads:
        graphs = list(threads.map(lambda network: capture(network, x), networks))
    for network, graph in zip(networks, graphs, strict=True):
        torch.testing.assert_close(graph(x), network(x))
