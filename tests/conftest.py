"""What all tests share: one torch thread, tiny teachers, and the folder of real images and weights."""

import copy
import gc
import hashlib
import importlib
import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from toys import make_teacher

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
def embedded_networks_captured_once():
    """Many tests load an embedded teacher and capture its network: torch.export takes most of their time."""
    module = importlib.import_module("zsq.graph.capture")  # the package gives its function that name
    captured, known = module._captured, {}

    def once(network, example):
        if not type(network).__module__.startswith("zsq.teacher.digits"):
            return captured(network, example)
        values = b"".join(t.detach().cpu().numpy().tobytes() for t in network.state_dict().values())
        key = (*map(type, network.modules()), example.shape, hashlib.sha256(values).digest())
        if key not in known:
            known[key] = copy.deepcopy(captured(network, example))
        return known[key]

    with mock.patch.object(module, "_captured", once):
        yield


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
