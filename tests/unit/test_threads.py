"""Two threads of one process look into networks at the same time; torch compiles afterwards as before."""

import threading

import pytest
import torch
from torch import nn
from toys import make_teacher, plain

from zsq.core.errors import NoAttentionError
from zsq.engine.attention import tapped_attention
from zsq.engine.estimate import forward_gflops
from zsq.graph import capture
from zsq.saved.dry_run import dry_run

PATIENCE_SECONDS = 0.2


class Shared(nn.Module):
    """A network that the first thread leaves while the second one is in it, if both can be in it."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.first_is_in, self.second_is_in, self.first_has_left = (threading.Event() for _ in range(3))

    def forward(self, images):
        if threading.current_thread().name == "first":
            self.first_is_in.set()
            self.second_is_in.wait(PATIENCE_SECONDS)
        if threading.current_thread().name == "second":
            self.second_is_in.set()
            self.first_has_left.wait(PATIENCE_SECONDS)
        return self.network(images)


def attention_looked_for(teacher):
    with pytest.raises(NoAttentionError):
        tapped_attention(teacher, (), "a test")


LOOKS = {
    "operations counted": forward_gflops,
    "run without numbers": lambda teacher: dry_run(teacher.network, teacher.example()),
    "captured": lambda teacher: capture(teacher.network, teacher.example()),
    "attention looked for": attention_looked_for,
}
NAMES = list(LOOKS)


@pytest.mark.parametrize(("first", "second"), zip(NAMES, NAMES[1:] + NAMES[:1], strict=True))
def test_torch_compiles_after_two_threads_looked_into_a_network(first, second):
    # Built for CUDA and without a card, torch 2.10 crashes later on where a thread was the first to do this.
    dry_run(plain(3, 5), torch.ones(1, 3, 16, 16))
    teacher = make_teacher(lambda *shape: Shared(plain(*shape)))
    finished = []

    def look(how):
        LOOKS[how](teacher)
        finished.append(how)
        teacher.network.first_has_left.set()

    threads = [
        threading.Thread(target=look, args=(how,), name=name)
        for name, how in {"first": first, "second": second}.items()
    ]
    threads[0].start()
    teacher.network.first_is_in.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert sorted(finished) == sorted((first, second))
    graphs = []

    @torch.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    def doubled(tensor):
        return 2 * tensor

    doubled(torch.ones(2))
    assert len(graphs) == 1
