"""Free memory is the least of what the machine and its control groups leave."""

import pytest
import torch

from zsq.core.errors import MemoryShortageError
from zsq.core.memory import available_bytes, device_bytes, is_shortage, resident_bytes, shortage_said

GIB = 2**30


@pytest.fixture
def machine(tmp_path):
    """Writes the files of a machine; paths relative to its root."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    write(proc__meminfo=f"MemTotal: 99 kB\nMemAvailable: {16 * GIB // 1024} kB\n")
    return write


def group(folder, most, taken, cache=0, version2=True):
    names = (
        ("memory.max", "memory.current", "inactive_file")
        if version2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{most}\n")
    (folder / names[1]).write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cache}\n")


def test_without_groups_the_machine_decides(machine):
    assert available_bytes(machine()) == 16 * GIB


def test_a_group_s_limit_less_what_it_took_beside_droppable_cache(machine):
    root = machine(proc__self__cgroup="0::/job/inner\n")
    top = root / "sys/fs/cgroup"
    group(top / "job/inner", "max", 5)
    assert available_bytes(root) == 16 * GIB
    group(top / "job", 8 * GIB, 6 * GIB, cache=GIB)
    assert available_bytes(root) == 3 * GIB
    group(top, 4 * GIB, 9 * GIB)
    assert available_bytes(root) == 0


def test_a_container_sees_its_group_as_the_root(machine):
    root = machine(proc__self__cgroup="0::/docker/of/the/host\n")
    group(root / "sys/fs/cgroup", 2 * GIB, GIB)
    assert available_bytes(root) == GIB


def test_groups_of_version_1(machine):
    root = machine(proc__self__cgroup="5:cpu,memory:/job\n4:pids:/job\n")
    group(root / "sys/fs/cgroup/memory/job", 3 * GIB, GIB, version2=False)
    assert available_bytes(root) == 2 * GIB


@pytest.mark.parametrize("text", ["", "nonsense", "MemAvailable: many kB"])
def test_a_machine_that_says_nothing_useful_is_asked_another_way(machine, text):
    assert available_bytes(machine(proc__meminfo=text, proc__self__cgroup=text)) > 2**20


def test_this_machine():
    assert resident_bytes() > 2**20 and available_bytes() > 2**20
    assert device_bytes("cpu") is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you"),
    ],
)
def test_running_out_is_one_line(error):
    assert is_shortage(error)
    with (
        pytest.raises(MemoryShortageError, match=r"^out of memory; lower --batch$"),
        shortage_said("lower --batch"),
    ):
        raise error


def test_torch_s_own_shortage_is_known():
    with pytest.raises(MemoryShortageError), shortage_said("lower --batch"):
        torch.empty(2**50)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), shortage_said(""):
        raise RuntimeError("shapes differ")
