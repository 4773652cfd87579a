"""What all tests share: one torch thread, tiny teachers, and the folder of real images and weights."""

import copy
import gc
import hashlib
import os
import sys
from pathlib import Path

import pytest
import torch
from toys import make_teacher

from zsq.graph import capture

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("ZSQ_DATA") or REPOSITORY.parent / "shared" / "data")


def pytest_configure(config):
    """Tests are for the CPU: they and their child processes see no GPU, unless `-m gpu` asks for it."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device in sight: pytest -m gpu"))


def pytest_collection_finish():
    """What imports and collection left lives to the end: no garbage collection walks through it again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """Extensions complain of what is still frozen when the process ends."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two cores shared by several workers; results of float32 sums do not change with the machine either."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def equal_networks_share_a_graph():
    """Tests load the embedded teachers hundreds of times, and torch.export takes a second for each."""
    room = sys.modules[capture.__module__]
    captured, graphs = room._captured, {}

    def shared(network, example):
        key = _content(network, example)
        if key not in graphs:
            # A copy: a graph may hold tensors of the network that it was captured from.
            graphs[key] = copy.deepcopy(captured(network, example))
        return graphs[key]

    def _captured(network, example):
        own = type(network).__module__.startswith("zsq.teacher")
        return (shared if own else captured)(network, example)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(room, "_captured", _captured)
        yield


def _content(network, example):
    """All that a graph of one of zsq's own classes depends on."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    held = [
        (
            name,
            sorted(vars(module)),
            bool(module._forward_hooks or module._forward_pre_hooks),
        )
        for name, module in network.named_modules()
    ]
    kinds = [
        (name, tensor.dtype, tensor.device, tensor.stride()) for name, tensor in network.state_dict().items()
    ]
    described = (type(network), repr(network), str(held), str(kinds), tuple(example.shape[1:]))
    return (*described, digest.hexdigest())


@pytest.fixture
def data_folder(monkeypatch) -> Path:
    """The folder of real images and weights, also in the environment; without it the test is left out."""
    if not DATA.is_dir():
        pytest.skip(f"no real images and weights at {DATA}: set ZSQ_DATA")
    monkeypatch.setenv("ZSQ_DATA", str(DATA))
    return DATA


@pytest.fixture(scope="session")
def tiny_teacher():
    """Two conv-BN-ReLU layers on 3x16x16 images, 5 classes; nobody may change it."""
    return make_teacher()


@pytest.fixture(scope="session")
def tiny_teacher64():
    """The same in float64."""
    return make_teacher(dtype=torch.float64)


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    missing = sum("ZSQ_DATA" in str(report.longrepr) for report in skipped)
    if missing:
        terminalreporter.write_line(f"{missing} tests left out: no folder of real data (ZSQ_DATA)")
