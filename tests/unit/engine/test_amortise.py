"""A trained network is made once per run, from the seed alone, and kept whole or not at all."""

import threading
import warnings

import pytest
import torch
from commands import Spoken
from ranks import in_two_ranks
from safetensors.torch import load_file
from toys import make_teacher

from zsq.config import GenerateConfig, RuntimeConfig
from zsq.contract import Silent
from zsq.core.errors import StorageError
from zsq.core.seeding import torch_generator
from zsq.engine.amortise import AmortisedMethod, AmortisedOptions, FreshInputs
from zsq.engine.cache import read_tensors, write_tensors
from zsq.engine.conditional import NoiseNetwork
from zsq.engine.invert import LOG_EVERY
from zsq.engine.objectives import Term
from zsq.generators import create
from zsq.plan import Plan
from zsq.shards.verify import verify_run
from zsq.synthesis import synthesize
from zsq.synthesis.resolved import resolve

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a.weight": torch.randn(4, 2).T, "n": torch.tensor(3)}


def config(**changes):
    values = {
        **{"teacher": "toy", "method": "gdfq", "count": 6, "batch": 2, "shard_size": 2, "seed": 5},
        **{"iterations": 3, "runtime": RuntimeConfig(threads=1, compile="off")},
    }
    return GenerateConfig(**(values | changes))


def contents(run, *folders):
    return {p.name: p.read_bytes() for folder in folders for p in sorted((run / folder).iterdir())}


@pytest.fixture
def whole(tmp_path, tiny_teacher):
    run = synthesize.generate(config(), tmp_path / "whole", teacher=tiny_teacher)
    return contents(run, "prepared", "shards")


def test_cached_tensors_come_back_from_the_same_bytes(tmp_path):
    assert read_tensors(tmp_path / "none") is None
    for name in ("one", "two"):
        write_tensors(tmp_path / name, TENSORS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found = read_tensors(tmp_path / "one")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    assert load_file(tmp_path / "one").keys() == {*TENSORS, "sha256"}


@pytest.mark.parametrize("damage", ["empty", "cut", "flip", "pickle", "unsigned"])
def test_a_damaged_cache_is_said_and_not_used(damage, tmp_path):
    path = tmp_path / "cache"
    write_tensors(path, TENSORS)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-40] ^= 1
    elif damage == "pickle":
        torch.save(TENSORS, path)
        data = path.read_bytes()
    elif damage == "unsigned":
        data = data.replace(b'"sha256"', b'"sha255"')
    path.write_bytes({"empty": b"", "cut": data[:-9]}.get(damage, data))
    with pytest.warns(UserWarning, match="cache is damaged; what it held is made again"):
        assert read_tensors(path) is None


def test_a_cache_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "cache").mkdir()
    with pytest.raises(StorageError, match=r"cannot read .*cache"):
        read_tensors(tmp_path / "cache")


def test_a_run_keeps_its_network_and_verifies(tmp_path, tiny_teacher, whole):
    assert set(whole) == {"gdfq-5.safetensors", *(f"shard-0000{index}.h5" for index in range(3))}
    verify_run(tmp_path / "whole")
    names = load_file(tmp_path / "whole/prepared/gdfq-5.safetensors").keys()
    assert {"losses.ce", "losses.bn", "seed.linear.weight", "embedding.weight"} <= set(names)


def test_resuming_takes_the_trained_network(tmp_path, tiny_teacher, whole, monkeypatch):
    (tmp_path / "whole/shards/shard-00001.h5").unlink()
    monkeypatch.setattr(AmortisedMethod, "_train", None)
    synthesize.generate(config(), tmp_path / "whole", teacher=tiny_teacher, resume=True)
    assert contents(tmp_path / "whole", "prepared", "shards") == whole


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_lost_or_damaged_network_is_trained_again_to_the_same_bytes(damage, tmp_path, tiny_teacher, whole):
    run = tmp_path / "whole"
    (run / "shards/shard-00002.h5").unlink()
    path = run / "prepared/gdfq-5.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    if damage == "lost":
        path.unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        synthesize.generate(config(), run, teacher=tiny_teacher, resume=True)
    assert contents(run, "prepared", "shards") == whole
    said = [str(warning.message) for warning in caught if warning.category is UserWarning]
    assert ["is damaged" in line for line in said] == [True] * (damage == "cut")


def test_a_run_killed_while_it_trains_resumes_to_the_same_bytes(tmp_path, tiny_teacher, monkeypatch):
    settings = config(iterations=LOG_EVERY + 5)
    whole = synthesize.generate(settings, tmp_path / "whole", teacher=tiny_teacher)

    class Killed(Exception):
        """In the middle of training."""

    class Stop(Spoken):
        def job(self, *_):
            raise_after = iter([None])

            class Log:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    pass

                def advance(self, amount, **values):
                    if next(raise_after, Killed) is Killed:
                        raise Killed

            return Log()

    run = tmp_path / "run"
    with pytest.raises(Killed):
        synthesize.generate(settings, run, teacher=tiny_teacher, reporter=Stop())
    assert not (run / "prepared").exists() or not list((run / "prepared").iterdir())
    synthesize.generate(settings, run, teacher=tiny_teacher, resume=True)
    assert contents(run, "prepared", "shards") == contents(whole, "prepared", "shards")


def test_of_two_ranks_the_first_trains(tmp_path, tiny_teacher, whole, monkeypatch):
    trained, teachers = [], [make_teacher(), make_teacher()]
    train = AmortisedMethod._train

    def spy(self, *arguments):
        trained.append(threading.current_thread().name)
        return train(self, *arguments)

    def work(rank):
        synthesize.generate(config(), tmp_path / "split", teacher=teachers[rank])

    monkeypatch.setattr(AmortisedMethod, "_train", spy)
    in_two_ranks(monkeypatch, work)
    assert trained == ["0"]
    assert contents(tmp_path / "split", "prepared", "shards") == whole


def test_the_estimate_and_the_progress_count_the_training(tmp_path, tiny_teacher):
    reporter = Spoken()
    run = synthesize.generate(config(), tmp_path / "run", teacher=tiny_teacher, reporter=reporter)
    # 3 steps of 2 images, for 6 images.
    assert reporter.lines[0].startswith("gdfq: 6 images x 1 teacher pass, about ")
    assert '"done": 6, "total": 6' in (run / "events.jsonl").read_text()


def test_the_training_batch_is_the_runs(tmp_path, tiny_teacher):
    def resolved(**changes):
        return resolve(config(**changes), tmp_path, tiny_teacher).method.options.training_batch

    assert [resolved(), resolved(batch=None), resolved(batch=None, count=500)] == [2, 6, 200]
    assert resolved(set={"training_batch": 16}) == 16


def test_inputs_and_targets_are_fresh_for_every_step(tiny_teacher):
    options = AmortisedOptions(iterations=3, training_batch=4, latent=8)
    network = NoiseNetwork(tiny_teacher.spec, 5, 8, 0.8, False)
    fresh, generator = FreshInputs(network, "cpu", options), torch_generator(0, 0, "x")
    fresh.reset(generator)
    seen = []
    for _ in range(3):
        targets = fresh.redraw(generator, None)
        assert torch.equal(targets, fresh.inputs[0]) and targets.shape == (4, 5)
        seen.append(fresh.inputs[1])
        assert torch.equal(fresh(), network(*fresh.inputs))
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_training_minimises_its_terms_on_the_targets_drawn(tiny_teacher, tmp_path, monkeypatch):
    """The targets that the terms see are those whose inputs made the images."""
    method = create("gdfq", tiny_teacher, iterations=4, batch=3)
    pairs = []

    def record(forward):
        pairs.append((forward.viewed_NCHW.detach(), forward.targets_NK))
        return forward.logits_NK.square().mean()

    monkeypatch.setattr(method, "terms", lambda: [Term("logits", 1.0, record)])
    forward = method.network.forward
    drawn = []

    def spy(targets, *inputs):
        drawn.append((forward(targets, *inputs).detach(), targets))
        return forward(targets, *inputs)

    monkeypatch.setattr(method.network, "forward", spy)
    method.prepare(0, tmp_path, Silent())
    assert len(pairs) == 4
    for images, targets in pairs:
        assert any(torch.equal(images, x) and torch.equal(targets, y) for x, y in drawn)
    assert len({tuple(images.flatten()[:9].tolist()) for images, _ in pairs}) == 4


def test_a_term_that_never_changes_is_a_warning(tiny_teacher, tmp_path, monkeypatch):
    method = create("gdfq", tiny_teacher, iterations=2 * LOG_EVERY, batch=2)
    idle = Term("idle", 1.0, lambda forward: forward.viewed_NCHW.sum() * 0)
    monkeypatch.setattr(method, "terms", lambda: [idle])
    with pytest.warns(UserWarning, match="gdfq: loss term 'idle' never changed"):
        method.prepare(0, tmp_path, Silent())


def test_a_small_last_batch_comes_from_a_batch_as_in_training(tiny_teacher, tmp_path):
    method = create("gdfq", tiny_teacher, iterations=2, batch=8)
    method.prepare(0, tmp_path, Silent())
    (full,) = Plan(count=8, batch=8, shard_size=8, seed=0).groups
    (single,) = Plan(count=1, batch=8, shard_size=8, seed=0).groups
    whole, one = (method.synthesize(group, Silent()) for group in (full, single))
    assert torch.equal(one.standard_NCHW, whole.standard_NCHW[:1])
    assert torch.equal(one.targets_NK, whole.targets_NK[:1])
