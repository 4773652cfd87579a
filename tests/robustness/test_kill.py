"""kill -9 at any moment: every shard is whole or absent, and resuming ends with an unbroken run's bytes."""

import hashlib
import json
import signal
import time

import numpy as np
import pytest
from commands import call, run_python, start

from zsq.shards.verify import verify_run, verify_shard

NUM_WARM_KILLS = 16

OPTIONS = {
    "zeroq": ("--count", 24, "--batch", 2, "--shard-size", 4, "--iterations", 3),
    "dsg": ("--count", 24, "--batch", 4, "--shard-size", 4, "--iterations", 3),
}

# Forks a process that has everything loaded, kills it, checks and resumes; a line of JSON per kill.
WARM = """
import json, os, random, signal, sys, time
from pathlib import Path
from zsq.synthesis import synthesize
from zsq.config import GenerateConfig, RuntimeConfig
from zsq.shards.verify import verify_run, verify_shard
from zsq.teacher import load_teacher

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
teacher = load_teacher("embedded:digits")

def run(out, method, resume=False):
    config = GenerateConfig(teacher="embedded:digits", method=method, count=12, batch=4, shard_size=4,
                            iterations=1, runtime=RuntimeConfig(threads=1, compile="off"))
    synthesize.generate(config, out, resume=resume, teacher=teacher)
    return [(path.name, path.read_bytes()) for path in sorted((out / "shards").iterdir())]

def kill(out, method, delay):
    child = os.fork()
    if not child:
        try:
            run(out, method)
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

def corrupt(path):
    try:
        verify_shard(path)
    except Exception:
        return True
    return False

moments = random.Random(0)
for method in ("zeroq", "dsg"):
    run(folder / f"{method}-warm-up", method)
    start = time.perf_counter()
    unbroken = run(folder / f"{method}-unbroken", method)
    whole = time.perf_counter() - start
    for number in range(kills // 2):
        out = folder / f"{method}-{number}"
        kill(out, method, moments.uniform(0, 1.1) * whole)
        shards = sorted(out.glob("shards/*.h5"))
        damaged = sum(map(corrupt, shards))
        same = run(out, method, resume=True) == unbroken
        verify_run(out)
        left = [path.name for path in out.rglob("*.tmp")]
        print(json.dumps({"shards": len(shards), "corrupt": damaged, "same": same, "left": left}))
"""


def hashes(folder):
    files = sorted((folder / "shards").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def arguments(method, out):
    teacher = ("--teacher", "embedded:digits", "--method", method)
    return ("generate", *teacher, *OPTIONS[method], "--threads", 1, "--compile", "off", "--out", out)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Hashes of one unbroken run per method, made by the command line in this process."""
    folder = tmp_path_factory.mktemp("unbroken")

    def made(method, capsys):
        if not (folder / method).exists():
            assert call(capsys, *arguments(method, folder / method)).status == 0
        return hashes(folder / method)

    return made


def kill_at(process, shards, after_shards, delay):
    """kill -9 when `after_shards` shards are there, plus `delay` seconds; whether it was still running."""
    deadline = time.monotonic() + 60
    while after_shards and len(list(shards.glob("*.h5"))) < after_shards and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("method", "after_shards", "longest"), [("zeroq", 0, 3), ("dsg", 2, 0.1)])
def test_kill_of_the_command_line(method, after_shards, longest, tmp_path, unbroken, capsys):
    out = tmp_path / "run"
    wanted = unbroken(method, capsys)
    delay = np.random.default_rng(0).uniform(0, longest)
    running = kill_at(start(*arguments(method, out)), out / "shards", after_shards, delay)
    found = sorted(out.glob("shards/*.h5"))
    assert {path.name: verify_shard(path)[0].sha256 for path in found}.items() <= wanted.items()
    assert running or len(found) == len(wanted)
    assert call(capsys, *arguments(method, out), "--resume").status == 0
    assert hashes(out) == wanted
    assert not list(out.rglob("*.tmp"))
    verify_run(out)


def test_kill_of_a_warm_process(tmp_path):
    lines = run_python(WARM, tmp_path, NUM_WARM_KILLS).splitlines()
    kills = [json.loads(line) for line in lines]
    assert len(kills) == NUM_WARM_KILLS
    assert [kill["corrupt"] for kill in kills] == [0] * NUM_WARM_KILLS
    assert all(kill["same"] for kill in kills)
    assert not any(kill["left"] for kill in kills)
    # The moments fall before, between and after writes, not all in one place.
    assert len({kill["shards"] for kill in kills}) > 2
