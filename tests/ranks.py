"""Two processes of one job, played by threads."""

import threading

from zsq.core.processes import Processes


def in_two_ranks(monkeypatch, work):
    """Run `work(rank)` for ranks 0 and 1 side by side, in threads named after them.

    Raises:
        AssertionError: one of them failed.
    """
    local, barrier, failures = threading.local(), threading.Barrier(2, timeout=60), []

    class Rank(Processes):
        def wait(self):
            barrier.wait()

    def run(rank):
        local.rank = rank
        try:
            work(rank)
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    monkeypatch.setattr(Processes, "started", classmethod(lambda cls: Rank(local.rank, 2)))
    threads = [threading.Thread(target=run, args=(rank,), name=str(rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
