"""Every way of reading weights, and every refusal."""

import hashlib
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zsq.core.errors import MismatchError, WeightsError
from zsq.teacher.load import load_weights, read_sha256, read_state_dict


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def save(content, path, **options):
    torch.save(content, path, **options)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pt"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "best_prec1": 91.7, "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    ],
    ids=["plain", "wrapped", "wrapped-module", "module"],
)
@pytest.mark.filterwarnings("ignore:.*is taken")
def test_checkpoints_read_as_their_tensors(state, path, wrap, zipped):
    save(wrap(state), path, _use_new_zipfile_serialization=zipped)
    found, sha256 = read_state_dict(path)
    assert_same(found, state)
    assert sha256 == read_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors_are_recognised_by_content(state, path):
    save_file(state, path)
    assert_same(read_state_dict(path)[0], state)


def test_a_prefix_of_only_some_names_stays(state, path):
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert list(read_state_dict(save(mixed, path))[0]) == list(mixed)


def test_loaded_network_computes_as_the_original(network, state, path):
    torch.manual_seed(1)
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    load_weights(fresh, read_state_dict(save(state, path))[0], "file")
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(fresh(images), network(images))


def test_counter_of_batches_may_be_missing_or_left_over(network, state):
    del state["1.num_batches_tracked"]
    load_weights(network, state | {"9.num_batches_tracked": torch.tensor(3)}, "file")


def test_half_precision_weights_are_widened(network, state):
    half = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    load_weights(network, half, "file")
    assert network[0].weight.dtype == torch.float32
    assert torch.equal(network[0].weight, half["0.weight"].float())


class _WritesFile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("how", ["pickle", "zip", "legacy"])
def test_a_pickle_that_would_run_code_does_not(state, path, tmp_path, how):
    proof = tmp_path / "executed"
    content = {**state, "extra": _WritesFile(proof)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(WeightsError, match=r"run code|state dict"):
        read_state_dict(path)
    assert not proof.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_no_pickle_protocol_runs_code(path, tmp_path, protocol):
    proof = tmp_path / "executed"
    path.write_bytes(pickle.dumps(_WritesFile(proof), protocol=protocol))
    with pytest.raises(WeightsError):
        read_state_dict(path)
    assert not proof.exists()


def test_a_pickled_module_names_its_class_and_the_conversion(network, path):
    with pytest.raises(WeightsError, match=r"run code to load \(torch.nn.*state dict.*torch.save"):
        read_state_dict(save(network, path))


def test_torchscript_is_refused(network, path):
    torch.jit.trace(network, torch.zeros(1, 3, 8, 8)).save(path)
    with pytest.raises(WeightsError, match=r"TorchScript archive.*torch.save"):
        read_state_dict(path)


def test_exported_program_is_refused(network, tmp_path):
    path = tmp_path / "network.pt2"
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), path)
    with pytest.raises(WeightsError, match=r"exported program \(.pt2\)"):
        read_state_dict(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_one_line(state, path, kind, share):
    if kind == "safetensors":
        save_file(state, path)
    else:
        save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"GIF89a" + bytes(50), b"PK\x03\x04" + bytes(50), b"\x80" + bytes(50)])
def test_other_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        read_state_dict(path)


def test_a_zip_of_something_else_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(WeightsError, match="state dict"):
        read_state_dict(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(WeightsError, match="No such file"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="directory"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"a": torch.ones(1), "epoch": 3}, "'epoch' is a int"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is a torch.sparse_coo"),
        ({"a": torch.empty(2, device="meta")}, "on meta"),
        (torch.ones(2), "holds a Tensor"),
        ([1, 2], "holds a list"),
        ({}, "holds an empty file"),
    ],
)
def test_anything_but_plain_tensors_is_named(path, content, found):
    with pytest.raises(WeightsError, match=found):
        read_state_dict(save(content, path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(network, state, value):
    state["1.running_var"] = torch.full((4,), value)
    with pytest.raises(WeightsError, match=r"file: '1.running_var' holds NaN or infinity"):
        load_weights(network, state, "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("3.bias"), "file has no '3.bias'; expected shape 5"),
        (lambda s: s.update(extra=torch.ones(1)), "file has 'extra'"),
        (lambda s: s.update({"3.bias": torch.ones(7)}), "'3.bias' is 7; expected shape 5"),
        (lambda s: s.update({"3.bias": torch.ones(5, dtype=torch.int8)}), "'3.bias' is torch.int8"),
    ],
)
def test_weights_of_another_architecture_name_the_tensor_and_change_nothing(network, state, change, message):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    changed = {name: tensor + 1 for name, tensor in state.items()}
    change(changed)
    with pytest.raises(MismatchError, match=message):
        load_weights(network, changed, "file")
    assert_same(network.state_dict(), before)
