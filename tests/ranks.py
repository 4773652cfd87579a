"""Two processes of one job, played by threads."""

import threading

from torch.distributed import HashStore

from zsq.core.errors import ProcessesError
from zsq.core.processes import Processes


def in_two_ranks(monkeypatch, work):
    """Run `work(rank)` for ranks 0 and 1 side by side, in threads named after them.

    Raises:
        AssertionError: one of them failed.
    """
    local, store, failures = threading.local(), HashStore(), []

    def run(rank):
        local.processes = Processes(rank, 2, 2, True, store)
        try:
            with local.processes.job():
                work(rank)
        except ProcessesError:
            pass  # the other says why
        except BaseException as error:
            failures.append(error)

    # Outside of the two there is one process, as before.
    outside = Processes.started()
    started = classmethod(lambda cls: getattr(local, "processes", outside))
    monkeypatch.setattr(Processes, "started", started)
    threads = [threading.Thread(target=run, args=(rank,), name=str(rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
