"""What every method owes, whatever it does inside: one test per promise, over every method there is."""

import functools
import itertools
import shutil
import sys
import threading

import numpy as np
import pytest
import torch
from ranks import in_two_ranks
from toys import (
    NETWORKS,
    as_detector,
    image_spec,
    make_teacher,
    shared_teacher,
    unchanged,
    with_attention,
    without_bn,
)

from zsq.config import GenerateConfig, RuntimeConfig
from zsq.contract import Silent
from zsq.core.errors import MismatchError, NoBatchNormError, OptionError
from zsq.engine.objectives import Term
from zsq.engine.statistics import Alignment, TappedTeacher, image_distances
from zsq.generators import available_methods, create
from zsq.plan import Plan
from zsq.shards.reader import ShardDataset
from zsq.shards.verify import verify_run
from zsq.synthesis import synthesize
from zsq.synthesis.resolved import resolve
from zsq.teacher import load_teacher

METHODS = available_methods()
SHORT = 2  # iterations where only the mechanics count
BN_METHODS = [name for name, cls in METHODS.items() if cls.facts.needs_batch_norm]
LABEL_METHODS = [name for name, cls in METHODS.items() if cls.facts.needs_labels]
SPECS = {
    "grey": image_spec(channels=1),
    "wide": image_spec(size=(8, 20)),
    "64px": image_spec(size=(64, 64)),
    "resized": image_spec(size=(8, 8), input_size=(16, 16)),
    "five-channel": image_spec(channels=5, size=(9, 7)),
}
# Each kind of network once, and among them every shape of images.
KINDS = {
    "depthwise": SPECS["grey"],
    "dropout": image_spec(),
    "pre-activation": SPECS["wide"],
    "downsample": SPECS["64px"],
    "squeeze-excite": SPECS["resized"],
    "dense": SPECS["five-channel"],
}

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def suited(name, teacher):
    """The teacher, whose outputs are read as boxes where the method asks for some, or with attention."""
    facts = METHODS[name].facts
    teacher = with_attention(teacher) if facts.needs_attention else teacher
    return as_detector(teacher) if facts.needs_boxes else teacher


# Two ways to the same sum differ in the last bit. Adam's first step has one length whatever the gradient, so
# where that is nearly 0 its sign is chance: so many pixels may be elsewhere, all others are within so many
# levels of 0..255.
SHARE_ELSEWHERE, LEVELS = 0.01, 1


def pixels_made(name, folder, *, count, batch, iterations, **runtime):
    """Pixels of one shard that a method makes of a toy teacher, in float32 with one thread."""
    options = METHODS[name].options_class.model_fields
    config = GenerateConfig(
        teacher="toy",
        method=name,
        count=count,
        batch=batch,
        shard_size=count,
        iterations=iterations if "iterations" in options else None,
        runtime=RuntimeConfig(precision="fp32", threads=1, **runtime),
    )
    run = synthesize.generate(config, folder, teacher=suited(name, make_teacher()))
    return ShardDataset(run).pixels().numpy().astype(int)


@pytest.fixture(params=list(METHODS))
def name(request):
    return request.param


@pytest.fixture
def make(tmp_path):
    """Makes images of one method: (teacher, count, ...) -> the plan's batches, in order."""
    folders = itertools.count()

    def make(name, teacher, count=4, *, batch=4, seed=0, iterations=SHORT, only=None, log=None):
        per_group = METHODS[name].batches_per_group
        plan = Plan(count=count, batch=batch, shard_size=count, seed=seed, batches_per_group=per_group)
        method = create(name, suited(name, teacher), iterations=iterations, batch=batch)
        if method.facts.needs_real:
            method.read(*given_images(teacher))
        method.prepare(seed, tmp_path / f"prepared-{next(folders)}", log or Silent())
        chosen = plan.groups if only is None else [plan.groups[only]]
        return [method.synthesize(group, log or Silent()) for group in chosen]

    return make


def given_images(teacher):
    """Of every class that the teacher ever sees in noise, as `--real` would name them."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (64, *teacher.spec.shape), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        return pixels, teacher.logits(teacher.spec.pixels_to_standard(pixels)).argmax(1)


def pixels_of(teacher, batches):
    return teacher.spec.standard_to_pixels(torch.cat([batch.standard_NCHW for batch in batches]))


def check(batches, teacher, count):
    images = torch.cat([batch.standard_NCHW for batch in batches])
    assert images.shape == (count, *teacher.spec.shape)
    assert images.dtype == torch.float32 and images.isfinite().all()
    for batch in batches:
        if batch.targets_NK is not None:
            assert batch.targets_NK.shape == (len(batch.standard_NCHW), teacher.num_classes)
            assert (batch.targets_NK >= 0).all()
            torch.testing.assert_close(batch.targets_NK.sum(1), torch.ones(len(batch.targets_NK)))
        assert all(np.isfinite(value) for value in batch.losses.values())


def test_facts_and_name(name):
    cls = METHODS[name]
    assert cls.name == name and cls.facts.paper and cls.facts.summary
    assert cls.facts.data_read == "none" or cls.facts.needs_real
    assert cls.default_batch(image_spec()) >= 1 and cls.__doc__


def test_the_seed_decides_and_no_global_randomness(name, make, tiny_teacher):
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = pixels_of(tiny_teacher, make(name, tiny_teacher))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(first, pixels_of(tiny_teacher, make(name, tiny_teacher)))
    assert not torch.equal(first, pixels_of(tiny_teacher, make(name, tiny_teacher, seed=1)))


def test_images_of_one_group_and_of_two_differ(name, make, tiny_teacher):
    batches = make(name, tiny_teacher, count=8)
    check(batches, tiny_teacher, 8)
    assert len(torch.unique(pixels_of(tiny_teacher, batches).flatten(1), dim=0)) == 8


def test_a_group_made_alone_is_that_of_the_whole_run(name, make, tiny_teacher):
    # Three groups: the second comes after one of its size, the third after larger ones.
    run = {"count": 4 * (METHODS[name].batches_per_group or 1) + 1, "batch": 2}
    whole = make(name, tiny_teacher, **run)
    assert len(whole) == (3 if METHODS[name].batches_per_group else 1)
    for index, batch in enumerate(whole[1:], 1):
        (alone,) = make(name, tiny_teacher, **run, only=index)
        assert torch.equal(alone.standard_NCHW, batch.standard_NCHW)
        assert (alone.targets_NK is None) == (batch.targets_NK is None)
        assert batch.targets_NK is None or torch.equal(alone.targets_NK, batch.targets_NK)


@pytest.mark.parametrize("network", KINDS)
def test_teachers_and_images_of_every_kind(name, make, network):
    """The teacher stays as it was."""
    teacher = shared_teacher(NETWORKS[network], KINDS[network])
    with unchanged(teacher):
        check(make(name, teacher, count=3, batch=2), teacher, 3)


def test_every_kind_and_shape_is_among_them():
    assert {*KINDS, "plain"} == set(NETWORKS) and set(SPECS.values()) <= set(KINDS.values())


@pytest.mark.parametrize(("network", "outputs"), [("plain", 2), ("squeeze-excite", 1000)])
def test_a_batch_of_one_after_one_iteration_of_any_number_of_classes(name, make, network, outputs):
    teacher = shared_teacher(NETWORKS[network], outputs=outputs)
    check(make(name, teacher, count=1, batch=1, iterations=1), teacher, 1)


def test_every_term_moves_and_progress_is_complete(name, make, tiny_teacher, monkeypatch):
    monkeypatch.setattr("zsq.engine.invert.LOG_EVERY", 4)
    amounts, logged = [], {}

    class Log:
        def advance(self, amount, **values):
            amounts.append(amount)
            for term, value in values.items():
                logged.setdefault(term, []).append(value)

    iterations = 10
    batches = make(name, tiny_teacher, iterations=iterations, log=Log())
    cls = METHODS[name]
    optimises = "iterations" in cls.options_class.model_fields
    options = cls.options_class.resolve(name, tiny_teacher.spec, {}, iterations, 4)
    # For one batch, a network's training too.
    assert sum(amounts) == (cls.teacher_passes(options, 4) if optimises else 4)
    assert set(logged) == set(batches[-1].losses) and bool(logged) == optimises
    for term, values in logged.items():
        assert np.isfinite(values).all() and len(set(values)) > 1, term


def test_every_term_has_a_gradient(name, make, tiny_teacher, monkeypatch):
    """Down to what the teacher sees, finite, at every step at which the term is not zero itself."""
    seen = {}

    def watched(term, forward):
        value = term(forward)
        (gradient,) = torch.autograd.grad(
            value, forward.viewed_NCHW, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return value, gradient

    def term(name, weight, function):
        def call(forward):
            value, gradient = watched(function, forward)
            assert value.isfinite() and gradient.isfinite().all(), name
            seen[name] = seen.get(name, False) or bool(gradient.any())
            return value

        return Term(name, weight, call)

    modules = [
        module for key, module in sys.modules.items() if key.startswith(("zsq.generators", "zsq.engine"))
    ]
    for module in modules:
        if getattr(module, "Term", None) is Term:
            monkeypatch.setattr(module, "Term", term)
    batches = make(name, tiny_teacher, count=4, iterations=6)
    assert set(seen) == set(batches[-1].losses)
    assert all(steers for term, steers in seen.items()), seen


@pytest.mark.parametrize("name", BN_METHODS)
def test_bn_distance_of_stored_images_is_below_noises(name, make):
    """Of a trained teacher: the batch's at most half of noise's (DSG stops at its slack, near a third; others
    go further), each image's own at least below noise's, which methods of batch scope do not aim at."""
    teacher = load_teacher("embedded:digits")
    tapped = TappedTeacher(teacher)

    @torch.no_grad()
    def distances(batches):
        _, layers = tapped(teacher.spec.pixels_to_standard(pixels_of(teacher, batches)))
        return image_distances(layers).mean().item(), Alignment("batch")(layers).item()

    found = distances(make(name, teacher, count=8, batch=8, iterations=25))
    noise = distances(make("noise", teacher, count=8, batch=8))
    assert found[0] < noise[0] and found[1] < noise[1] / 2


@pytest.fixture(scope="module")
def given_file(tmp_path_factory):
    """The images of `--real`."""
    pixels, labels = given_images(shared_teacher())
    path = tmp_path_factory.mktemp("given") / "given.npz"
    np.savez(path, images=pixels.permute(0, 2, 3, 1), labels=labels)
    return path


@pytest.fixture(scope="module")
def config(given_file):
    """Makes the configuration of a short run."""

    def config(name):
        run = {"count": 10, "batch": 2, "shard_size": 4, "iterations": SHORT}
        real = {"real": str(given_file)} if METHODS[name].facts.needs_real else {}
        return GenerateConfig(teacher="toy", method=name, **run, **real)

    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The folder of such a run of a method; nobody may change it."""
    folder = tmp_path_factory.mktemp("finished")

    @functools.cache
    def finished(name):
        return synthesize.generate(config(name), folder / name, teacher=suited(name, shared_teacher()))

    return finished


@functools.cache
def teacher_of_rank(rank):
    return make_teacher()


@pytest.mark.parametrize("name", BN_METHODS)
def test_networks_without_bn_are_refused_before_anything_is_written(name, config, tmp_path):
    with pytest.raises(
        NoBatchNormError, match=f"which {name} matches; .* suits leaves, noise, gzsq, gzsq_moment, ce_tv$"
    ):
        synthesize.generate(config(name), tmp_path / "run", teacher=shared_teacher(without_bn))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", LABEL_METHODS)
def test_networks_without_classes_are_refused_before_anything_is_written(name, config, tmp_path):
    with pytest.raises(
        MismatchError, match=f"since {name} asks for classes; .* suits dgh, pyramid, varied, zeroq"
    ):
        synthesize.generate(config(name), tmp_path / "run", teacher=shared_teacher(task="embed"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in LABEL_METHODS])
def test_the_others_take_networks_without_classes(name, make):
    check(make(name, shared_teacher(task="embed")), shared_teacher(task="embed"), 4)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in BN_METHODS])
def test_the_others_take_networks_without_bn(name, make):
    check(make(name, shared_teacher(without_bn)), shared_teacher(without_bn), 4)


def shard_bytes(run):
    return {path.name: path.read_bytes() for path in sorted((run / "shards").iterdir())}


def test_a_run_on_disk_and_its_resume(name, config, finished, tmp_path):
    """Shards that verify, of the pixels the method makes; a lost and a damaged shard come back the same."""
    teacher, run = suited(name, shared_teacher()), tmp_path / "run"
    shutil.copytree(finished(name), run)
    verify_run(run)
    whole = shard_bytes(run)
    assert len(whole) == 3
    pixels, labels = ShardDataset(run).pixels(), ShardDataset(run).labels()
    assert pixels.shape == (10, *teacher.spec.shape) and pixels.dtype == torch.uint8
    made = METHODS[name].facts.needs_labels or METHODS[name].facts.takes_labels
    assert ((labels >= 0) & (labels < 5)).all() if made else (labels == -1).all()

    lost, damaged = (run / "shards" / f"shard-0000{index}.h5" for index in (1, 2))
    lost.unlink()
    damaged.unlink()
    damaged.write_bytes(whole[damaged.name][:-100])
    synthesize.generate(config(name), run, teacher=suited(name, shared_teacher()), resume=True)
    assert shard_bytes(run) == whole


def test_two_ranks_make_the_files_of_one(name, config, finished, tmp_path, monkeypatch):
    settings, alone = config(name), finished(name)
    # Before the threads, which share the generator that random weights are drawn from.
    teachers = [suited(name, teacher_of_rank(rank)) for rank in range(2)]
    written = []

    def contents(job, unit, *rest):
        made = synthesize_contents(job, unit, *rest)
        rank = int(threading.current_thread().name)
        written.extend((rank, unit.first_shard + k) for k in range(len(made)))
        return made

    def work(rank):
        synthesize.generate(settings, tmp_path / "split", teacher=teachers[rank])

    synthesize_contents = synthesize._contents
    monkeypatch.setattr(synthesize, "_contents", contents)
    in_two_ranks(monkeypatch, work)
    assert shard_bytes(tmp_path / "split") == shard_bytes(alone)
    units = resolve(settings, tmp_path, teachers[0]).plan.units
    shares = [
        (i % 2, unit.first_shard + k) for i, unit in enumerate(units) for k in range(len(unit.shard_sizes))
    ]
    assert sorted(written) == sorted(shares) and len(shares) == 3
    verify_run(tmp_path / "split")


def test_short_runs_scale_what_is_tied_to_iterations(name):
    options_class, spec = METHODS[name].options_class, image_spec(size=(224, 224))
    full = options_class.resolve(name, spec, {})
    length = getattr(full, "iterations", None)
    if length is None:
        assert options_class.resolve(name, spec, {}, 10) == full
        return
    half = options_class.resolve(name, spec, {}, length // 2)
    for key, field in options_class.model_fields.items():
        scales = key == "iterations" or (field.json_schema_extra or {}).get("scales")
        before, after = getattr(full, key), getattr(half, key)
        assert after == (pytest.approx(before / 2, abs=1) if scales else before), key


@pytest.mark.parametrize("value", ["nonsense", -1])
def test_options_that_cannot_work_are_one_line(name, value):
    options_class = METHODS[name].options_class
    with pytest.raises(OptionError, match=f"{name} has no option 'no_such_option'"):
        options_class.resolve(name, image_spec(), {"no_such_option": 1})
    for key in options_class.model_fields:
        with pytest.raises(OptionError, match=f"{name}: {key}"):
            wrong = value if not isinstance(getattr(options_class(), key), bool) else "maybe"
            options_class.resolve(name, image_spec(), {key: wrong})
