"""Weights as people have them: each entry and prefix, what is said, and files made to mislead."""

import hashlib
import pickle
import sys
import time
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zsq.core.errors import MismatchError, WeightsError
from zsq.teacher import load_teacher
from zsq.teacher.cifar_resnet import CifarResNet
from zsq.teacher.load import load_weights, read_state_dict
from zsq.teacher.unwrap import unwrap

ENTRIES = ["model", "net", "state_dict", "model_state_dict", "ema", "params"]
PREFIXES = ["module.", "_orig_mod.", "model.", "backbone."]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pt"


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def moved(state, by=1):
    return {name: tensor + by for name, tensor in state.items()}


def adam(state):
    """As torch.optim.Adam's state_dict is."""
    moments = {index: {"exp_avg": t, "exp_avg_sq": t} for index, t in enumerate(state.values())}
    return {"state": moments, "param_groups": [{"lr": 0.1, "params": list(moments)}]}


def assert_reads(content, network, wanted, path, key=None):
    """What was said, on one line without the path."""
    torch.save(content, path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state, sha256 = read_state_dict(path, network, key)
        load_weights(network, state, "file")
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    said = [str(warning.message) for warning in caught]
    assert len(said) <= 1 and all(line.startswith(f"{path}: ") and "\n" not in line for line in said)
    return said[0].removeprefix(f"{path}: ") if said else ""


def test_nothing_is_said_of_plain_weights(network, state, path):
    assert assert_reads(moved(state), network, moved(state), path) == ""


@pytest.mark.parametrize("entry", [*ENTRIES, "weights_of_mine"])
def test_every_entry(network, state, path, entry):
    said = assert_reads({entry: moved(state)}, network, moved(state), path)
    assert said == f"entry '{entry}' is taken"


@pytest.mark.parametrize("prefix", [*PREFIXES, "module._orig_mod.", "_orig_mod.module.model.backbone."])
def test_every_prefix(network, state, path, prefix):
    said = assert_reads(prefixed(prefix, moved(state)), network, moved(state), path)
    assert said == f"'{prefix}' is taken off every name"


def test_a_prefix_of_safetensors(network, state, path):
    save_file(prefixed("backbone.", state), path)
    with pytest.warns(UserWarning, match=r"'backbone\.' is taken off every name"):
        found, _ = read_state_dict(path, network)
    assert found.keys() == state.keys()


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (
            lambda s: {"epoch": 3, "model_state_dict": s, "optimizer": adam(s)},
            "entry 'model_state_dict' is taken",
        ),
        (
            lambda s: {"state_dict": prefixed("module.", s), "best": 91.7},
            "entry 'state_dict' is taken; 'module.' is taken off every name",
        ),
        (
            lambda s: {"ema": {"module": s, "updates": 7}, "step": torch.tensor(7)},
            "entry 'ema.module' is taken",
        ),
        (lambda s: {"a": {"b": {"model": {"net": s}}}}, "entry 'a.b.model.net' is taken"),
        (
            lambda s: {"generator": {"other.weight": torch.ones(9)}, "discriminator": s},
            "entry 'discriminator' is taken",
        ),
        # The averages of an optimizer and of parameters alone have no statistics of BN.
        (
            lambda s: {"exp_avg": moved({n: s[n] for n in s if "running" not in n}), "model": s},
            "entry 'model' is taken",
        ),
    ],
    ids=["training", "parallel", "ema-module", "deep", "gan", "parameters"],
)
def test_entries_inside_one_another(network, state, path, wrap, said):
    state = moved(state)
    assert assert_reads(wrap(state), network, state, path) == said


@pytest.mark.parametrize("average", ["ema", "model_ema", "params_ema", "state_dict_ema"])
def test_of_several_that_fit_averaged_weights_are_taken(network, state, path, average):
    content = {"model": state, "schema": moved(state, 1), average: prefixed("module.", moved(state, 2))}
    assert assert_reads(content, network, moved(state, 2), path) == (
        f"entry '{average}' is taken; 'model', 'schema' would fit too: weights_key in a teacher card takes "
        "another; 'module.' is taken off every name"
    )


def test_of_several_that_fit_a_usual_name_is_taken_then_the_first(network, state, path):
    content = {"last": state, "best": moved(state, 2), "params": moved(state, 1)}
    assert "'params' is taken; 'last', 'best' would" in assert_reads(content, network, moved(state), path)
    del content["params"]
    assert "'last' is taken; 'best' would" in assert_reads(content, network, state, path)


def test_missing_counters_of_batches_do_not_decide(network, state, path):
    averaged = {n: t for n, t in moved(state).items() if not n.endswith("num_batches_tracked")}
    with pytest.warns(UserWarning, match=r"entry 'ema' is taken; 'model' would fit too"):
        torch.save({"model": state, "ema": averaged}, path)
        assert read_state_dict(path, network)[0].keys() == averaged.keys()


def test_shapes_and_leftovers_decide_between_equal_names(network, state, path):
    wide = {name: torch.ones(3, *tensor.shape) for name, tensor in state.items()}
    said = assert_reads({"ema": wide, "student": state}, network, state, path)
    assert said == "entry 'student' is taken"
    said = assert_reads(
        {"ema": state | {"head.weight": torch.ones(2)}, "student": state}, network, state, path
    )
    assert said == "entry 'student' is taken"


@pytest.mark.parametrize(
    ("key", "by"), [("model", 1), ("ema", 2), ("ema.module", 2), ("other", 3), ("other.net", 3)]
)
def test_a_key_chooses(network, state, path, key, by):
    content = {
        "model": moved(state, 1),
        "ema": {"module": moved(state, 2)},
        "other": {"net": prefixed("_orig_mod.", moved(state, 3))},
    }
    assert "would fit" not in assert_reads(content, network, moved(state, by), path, key)


@pytest.mark.parametrize("key", ["nothing", "model.0", "ema.", ".", "step", "model.3.bias", "x" * 5000])
def test_a_key_that_is_not_there(network, state, path, key):
    torch.save({"model": state, "ema": {"module": moved(state)}, "step": 1}, path)
    with pytest.raises(
        MismatchError, match=r"has no entry .*one of 'model', 'ema.module'; correct"
    ) as caught:
        read_state_dict(path, network, key)
    assert caught.value.exit_code == 2 and len(str(caught.value)) < 500


def test_a_key_for_a_file_without_entries(network, state, path):
    save_file(state, path)
    with pytest.raises(MismatchError, match="has no entry 'ema'; expected none: its tensors stand in no"):
        read_state_dict(path, network, "ema")


class Inner(nn.Module):
    def __init__(self, network, name):
        super().__init__()
        self.add_module(name, network)


@pytest.mark.parametrize("name", ["module", "model", "backbone"])
def test_a_prefix_that_the_network_has_itself_stays(network, state, path, name):
    outer = Inner(network, name)
    wanted = prefixed(f"{name}.", moved(state))
    assert assert_reads(wanted, outer, wanted, path) == ""
    said = assert_reads(prefixed("module.", wanted), outer, wanted, path)
    assert said == "'module.' is taken off every name"


def test_a_prefix_of_some_names_of_the_network(network, state, path):
    outer = Inner(network, "model")
    outer.head = nn.Linear(2, 2)
    wanted = {name: tensor + 1 for name, tensor in outer.state_dict().items()}
    assert assert_reads(wanted, outer, wanted, path) == ""
    said = assert_reads(prefixed("model.", wanted), outer, wanted, path)
    assert said == "'model.' is taken off every name"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_a_profiler_leaves_is_ignored(network, state, path, prefix):
    left = {
        "total_ops": torch.zeros(1),
        "total_params": torch.zeros(1),
        f"{prefix}0.total_ops": torch.ones(1),
    }
    said = assert_reads(left | prefixed(prefix, moved(state)), network, moved(state), path)
    assert said.endswith("total_ops and total_params are ignored")
    assert (f"'{prefix}' is taken off" in said) == bool(prefix)


def test_a_tensor_called_total_ops_that_the_network_has_is_read(network, state, path):
    network.register_buffer("total_ops", torch.zeros(1))
    wanted = moved(network.state_dict())
    assert assert_reads(wanted, network, wanted, path) == ""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_read_as_float32(network, state, path, dtype):
    half = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    wanted = {n: t.float() if t.is_floating_point() else t for n, t in half.items()}
    said = assert_reads(half, network, wanted, path)
    assert said == f"{dtype} weights are read as float32"
    assert network[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {f"layers.{name}": tensor for name, tensor in s.items()},
        lambda s: {"epoch": 3, "model": {f"layers.{name}": tensor for name, tensor in s.items()}},
        lambda s: {"optimizer": {"a": {"x": torch.ones(1)}}, "net": {f"layers.{n}": t for n, t in s.items()}},
    ],
    ids=["plain", "wrapped", "optimizer"],
)
@pytest.mark.filterwarnings("ignore:.*is taken")
def test_names_that_do_not_fit_are_shown_beside_the_networks(network, state, path, change):
    torch.save(change(state), path)
    with pytest.raises(MismatchError) as caught:
        load_weights(network, read_state_dict(path, network)[0], "file")
    assert str(caught.value) == (
        "file has no '0.weight'; expected shape 4x3x3x3; the file has 'layers.0.weight', 'layers.0.bias', "
        "'layers.1.weight', the network wants '0.weight', '0.bias', '1.weight'; pass the weights of this "
        "architecture"
    )


def test_only_names_that_differ_are_shown(network, state, path):
    state["fc.bias"] = state.pop("3.bias")
    with pytest.raises(MismatchError, match=r"the file has 'fc.bias', the network wants '3.bias'; pass"):
        load_weights(network, state, "file")


def test_names_of_strangers_are_cut_and_printable(network, state):
    with pytest.raises(MismatchError) as caught:
        load_weights(network, {"\x1b[31m\n" + "x" * 10**6: torch.ones(1)}, "file")
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_names_that_meet_after_a_prefix_are_not_mixed(network, state, path):
    """With 'module.' before some names only, nothing is taken off, and what is left over is refused."""
    torch.save(state | prefixed("module.", moved(state)), path)
    with pytest.raises(MismatchError, match=r"has 'module.0.weight'; expected only tensors"):
        load_weights(network, read_state_dict(path, network)[0], "file")
    twice = prefixed("module.", state | prefixed("module.", moved(state)))
    torch.save(twice, path)
    with pytest.warns(UserWarning), pytest.raises(MismatchError, match=r"has 'module.0.weight'"):
        load_weights(network, read_state_dict(path, network)[0], "file")


def test_names_that_densenets_dots_make_equal_are_refused(path):
    names = ["denselayer1.norm1.weight", "denselayer1.norm.1.weight"]
    torch.save({name: torch.ones(1) for name in names}, path)
    with pytest.raises(MismatchError, match=r"both 'norm1' and 'norm.1'"):
        load_teacher("densenet121", path)


@pytest.mark.parametrize("name", [0, (1, 2), None, 1.5])
def test_names_that_are_no_text(network, state, path, name):
    torch.save(state | {name: torch.ones(1)}, path)
    with pytest.raises(WeightsError, match=f"a name is a {type(name).__name__}"):
        read_state_dict(path, network)


def test_entries_nested_a_thousand_deep_are_refused(network, state, path):
    content = state
    for _ in range(1000):
        content = {"model": content}
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        torch.save(content, path, pickle_module=_PurePickle)
    finally:
        sys.setrecursionlimit(limit)
    with pytest.raises(WeightsError, match="'model' is a dict; expected plain tensors only, or up to 4 entr"):
        read_state_dict(path, network)


class _PurePickle:
    """The pickler written in Python, which alone heeds the raised limit."""

    Pickler = pickle._Pickler


def test_entries_that_hold_themselves_and_each_other_end_soon(network, state, path):
    rings = [{} for _ in range(300)]
    for ring in rings:
        ring.update({f"key{index}": other for index, other in enumerate(rings)})
    start = time.process_time()
    chosen, _ = unwrap({"model": rings[0], "net": state}, network.state_dict(), None, path)
    assert chosen.keys() == state.keys() and time.process_time() - start < 5


def test_a_file_of_many_entries_is_looked_through_soon(network, state, path):
    content = {f"key{index}": {"a": state["3.bias"]} for index in range(50_000)}
    start = time.process_time()
    chosen, _ = unwrap(content | {"net": state}, network.state_dict(), None, path)
    assert chosen.keys() == state.keys() and time.process_time() - start < 10


def test_prefixes_without_end_are_left(network, state, path):
    torch.save(prefixed("module." * 100_000, {"0.weight": state["0.weight"]}), path)
    start = time.process_time()
    with pytest.raises(MismatchError):
        load_weights(network, read_state_dict(path, network)[0], "file")
    assert time.process_time() - start < 5


@pytest.mark.parametrize("value", [[], {}, 3, {"a": {}}, [torch.ones(1)]])
def test_entries_without_tensors_are_named(network, path, value):
    torch.save({"model": value}, path)
    with pytest.raises(WeightsError, match=f"'model' is a {type(value).__name__}; expected plain tensors"):
        read_state_dict(path, network)


def test_a_huge_view_is_refused_by_its_shape(network, state, path):
    state["3.bias"] = torch.zeros(1, dtype=torch.float16).expand(10**11)
    torch.save({"model": state}, path)
    with pytest.warns(UserWarning), pytest.raises(MismatchError, match=r"'3.bias' is 100000000000; expected"):
        load_weights(network, read_state_dict(path, network)[0], "file")


def test_a_builtin_teacher_takes_a_training_checkpoint(path):
    torch.manual_seed(0)
    network = CifarResNet(20).eval()
    state = prefixed("module.", network.state_dict())
    torch.save({"net": state, "acc": 91.0, "optimizer": adam(state)}, path)
    with pytest.warns(UserWarning, match=r"entry 'net' is taken; 'module.' is taken off every name"):
        teacher = load_teacher("cifar10:resnet20", path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(teacher.logits(images), network(images))
    assert teacher.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
