"""What a student's file may call: the vocabulary's operations, in forms that overwrite nothing; and no sizes
that would take all memory."""

import operator

import pytest
import torch
from forged_students import complaint, forge

import zsq
from zsq.graph.vocabulary import OPERATIONS, PYTHON_FUNCTIONS
from zsq.saved import dry_run
from zsq.saved.operations import called, name_in_file

aten = torch.ops.aten


def test_the_names_of_calls_and_back():
    for function in (aten.relu.default, aten.add.Tensor, aten.sym_size.int, operator.getitem):
        assert called(name_in_file(function)) is function
    assert name_in_file(aten.relu_.default) is name_in_file(aten.from_file.default) is None
    assert name_in_file(torch.relu) is name_in_file(print) is None


def test_no_operation_of_the_table_overwrites_a_tensor():
    found = 0
    for name, known in OPERATIONS.items():
        packet = getattr(aten, name, None)
        for overload in [] if packet is None else packet.overloads():
            mutable = getattr(packet, overload)._schema.is_mutable
            try:
                called(f"aten.{name}.{overload}")
            except ValueError:
                assert mutable or not known.saved
            else:
                assert known.saved and not mutable
                found += 1
    assert found > 300


CALLS = [
    *("os.system", "builtins.eval", "builtins.getattr", "posix.system", "print", "", "."),
    *("aten.relu_.default", "aten.add_.Tensor", "aten.relu.out", "aten.add.out", "aten.zeros.out"),
    *("aten.from_file.default", "aten.set_.source_Storage", "aten.as_strided.default", "aten.item.default"),
    *("aten.empty.memory_format", "aten.rand.default", "aten.dropout.default", "aten.capped_relu.default"),
    *("aten.relu", "aten.relu.", "aten.relu.overloads", "aten.relu.__class__", "aten.__class__.default"),
    *("aten..default", "aten.relu.default.default", "prims.add.default", "torch.ops.aten.relu.default"),
    *("operator.setitem", "operator.attrgetter", "operator.methodcaller", "operator.iadd", "operator.call"),
]


@pytest.mark.parametrize("name", CALLS)
def test_nothing_else_is_called(saved, name):
    assert name not in PYTHON_FUNCTIONS
    with pytest.raises(ValueError, match="is not one of those a student may call"):
        called(name)

    def edit(record):
        calls(record)[0].update(target=name)

    forge(saved, edit)
    assert complaint(saved).startswith(f"student {saved}/student.json: ")


def calls(record):
    return [node for node in record["graph"]["nodes"] if node["op"] == "call_function"]


def insert(record, target, args, name="huge"):
    """Call something more behind the first layer."""
    nodes = record["graph"]["nodes"]
    index = next(i for i, node in enumerate(nodes) if node["op"] == "call_function")
    node = {"op": "call_function", "name": name, "target": target, "args": args, "kwargs": {}}
    nodes.insert(index + 1, node)
    return nodes[index]["name"]


SIZES = {
    "zeros": ("aten.zeros.default", [[2**40]]),
    "full": ("aten.full.default", [[2**40], 1.0]),
    "arange": ("aten.arange.default", [2**40]),
    "linspace": ("aten.linspace.default", [0.0, 1.0, 2**40]),
    "eye": ("aten.eye.default", [2**20]),
    "new zeros": ("aten.new_zeros.default", [{"node": "SOURCE"}, [2**40]]),
    "repeat": ("aten.repeat.default", [{"node": "SOURCE"}, [2**20, 2**10, 1, 1]]),
    "tile": ("aten.tile.default", [{"node": "SOURCE"}, [2**20, 2**10, 1, 1]]),
    "expand": ("aten.expand.default", [{"node": "SOURCE"}, [2**40, -1, -1, -1, -1]]),
    "pad": ("aten.constant_pad_nd.default", [{"node": "SOURCE"}, [2**20, 0, 2**20, 0]]),
    "upsample": ("aten.upsample_nearest2d.default", [{"node": "SOURCE"}, [2**20, 2**20]]),
    "pool": ("aten.adaptive_avg_pool2d.default", [{"node": "SOURCE"}, [2**20, 2**20]]),
    "windows": ("aten.unfold.default", [{"node": "SOURCE"}, 3, 2**40, 1]),
    "beyond any number": ("aten.zeros.default", [[10**30]]),
    "less than nothing": ("aten.zeros.default", [[-1]]),
}


@pytest.mark.parametrize("case", SIZES)
def test_absurd_sizes_take_no_memory(saved, case, monkeypatch):
    target, args = SIZES[case]
    ran = []

    def edit(record):
        source = insert(record, target, args)
        calls(record)[1]["args"] = [{"node": source} if arg == {"node": "SOURCE"} else arg for arg in args]

    forge(saved, edit)
    # One image goes through the network only when its sizes are known.
    monkeypatch.setattr("zsq.saved.saving.probe", lambda fitted: ran.append(1))
    said = complaint(saved)
    assert "its parts make no network: " in said and not ran
    unlike = ("windows", "beyond any number", "less than nothing")
    assert "one image takes more than" in said or case in unlike


@pytest.mark.parametrize("joined, taken", [(2, True), (8, False)])
def test_tensors_that_live_together_are_counted(saved, monkeypatch, joined, taken):
    monkeypatch.setattr(dry_run, "MAX_BYTES", 20 * 2**20)

    def edit(record):
        names = [f"large{i}" for i in range(8)]
        for name in names:
            insert(record, "aten.zeros.default", [[2**20]], name)
        parts = [{"node": name} for name in names[:joined]]
        node = {"op": "call_function", "name": "joined", "target": "aten.cat.default", "args": [parts]}
        record["graph"]["nodes"].insert(-1, {**node, "kwargs": {}})

    forge(saved, edit)
    if taken:
        zsq.load_student(saved)
    else:
        assert "one image takes more than 0.0 GiB of memory" in complaint(saved)
