"""What ranks share: meeting, agreeing, taking work, and ending together."""

import os
import signal
import warnings
from functools import partial
from pathlib import Path

import pytest
from ranks import in_two_ranks
from torch.distributed import HashStore

from zsq.core.errors import OptionError, ProcessesError, StorageError
from zsq.core.jobs import in_jobs
from zsq.core.processes import Processes, take_device

ITEMS = [str(number) for number in range(6)]


def die(folder):
    """Write a file per item taken, where nobody is killed before."""
    processes = Processes.started()
    if processes.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    processes.wait()
    for item in processes.taken(ITEMS):
        (folder / item).touch()


def test_each_process_has_a_gpu_of_its_own_as_long_as_there_are_some(monkeypatch):
    taken = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    for local_rank in range(3):
        take_device(local_rank)
    assert taken == [0, 1, 0]


def test_each_item_is_taken_once_whoever_is_first(monkeypatch):
    taken, agreed, counted = [], [], []

    def work(rank):
        processes = Processes.started()
        agreed.append(processes.agreed(["from", rank]))
        more = processes.counted()
        for item in processes.taken(ITEMS):
            taken.append(item)
            counted.append(more())
        processes.wait()

    in_two_ranks(monkeypatch, work)
    assert sorted(taken) == ITEMS
    assert agreed == [["from", 0], ["from", 0]]
    assert max(counted) <= len(ITEMS) <= sum(counted)


def test_one_that_fails_ends_the_others():
    store = HashStore()
    first, second = (Processes(rank, 2, 2, True, store) for rank in range(2))
    with pytest.raises(StorageError), second.job():
        raise StorageError("the disk is full")
    line = r"process 1 of 2 failed \(the disk is full\); what is finished is kept, --resume continues"
    for act in (first.wait, first.check, lambda: list(first.taken(ITEMS)), lambda: second.agreed(None)):
        with pytest.raises(ProcessesError, match=line):
            act()


def test_the_first_of_a_job_alone_warns(recwarn):
    for rank in range(2):
        with Processes(rank, 2, 2, True, HashStore()).job():
            warnings.warn(f"of rank {rank}", stacklevel=1)
    warnings.warn("behind the job", stacklevel=1)
    assert [str(each.message) for each in recwarn] == ["of rank 0", "behind the job"]


def test_alone_nothing_is_waited_for():
    alone = Processes()
    alone.wait()
    assert list(alone.taken(ITEMS)) == ITEMS and alone.agreed(3) == 3 and alone.counted()() == 1


def test_threads_are_one_for_ranks_and_never_of_their_number():
    assert Processes().threads(None) is None
    assert [Processes(0, count, count, True).threads(None) for count in (1, 2, 64)] == [1, 1, 1]
    assert Processes(0, 2, 2, True).threads(3) == 3


def test_a_job_that_dies_ends_all_in_one_line(tmp_path, capfd):
    with pytest.raises(ProcessesError, match=r"process 1 ended \(signal 9\)"):
        in_jobs(2, partial(die, tmp_path))
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert Processes.started() == Processes()


def test_one_job_is_this_process_with_one_thread():
    def call():
        return Processes.started()

    assert in_jobs(1, call) == Processes(launched=True)
    assert in_jobs(None, call) == Processes()


def test_jobs_that_make_no_sense_are_refused(monkeypatch):
    with pytest.raises(OptionError, match="--jobs 0; expected 1 to"):
        in_jobs(0, Path)
    monkeypatch.setattr(Processes, "started", classmethod(lambda cls: Processes(0, 2, 2, True)))
    with pytest.raises(OptionError, match="a launcher started"):
        in_jobs(2, Path)
