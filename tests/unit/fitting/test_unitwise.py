"""AdaRound, BRECQ, QDrop and GENIE-M on tiny networks, and the engine below them."""

import copy
import functools

import numpy as np
import pytest
import torch
from commands import alone
from torch import nn
from toys import NETWORKS, Blocks, image_spec, make_teacher, structured_images

from zsq.contract import Teacher
from zsq.core.errors import MismatchError, UntraceableError
from zsq.core.runtime import Runtime
from zsq.fitting import reconstruction
from zsq.fitting.reconstruction import Engine
from zsq.quantizers.grids import FakeQuantizer
from zsq.quantizers.rounding import SoftRounding
from zsq.students import create
from zsq.students.genie_m import GenieM, GenieMOptions
from zsq.students.qdrop import QDrop
from zsq.tasks.embed import Embed
from zsq.widths import Bits

STUDENTS = ["adaround", "brecq", "qdrop", "genie-m"]
# The rounding's rate is 0.1 at 60 iterations; the penalty decides on small errors too.
FAST = {"iterations": 60, "learning_rate": 3e-4, "rounding_weight": 0.1, "batch": 16}


@pytest.fixture(scope="module")
def teacher():
    return make_teacher(Blocks)


@pytest.fixture(scope="module")
def pixels():
    images = structured_images((32, 3, 16, 16), seed=1)
    return ((images * 0.25 + 0.5).clamp(0, 1) * 255).to(torch.uint8)


class Log:
    """What a fit says: losses and each unit's error before and after."""

    def __init__(self):
        self.amount, self.losses, self.units = 0, [], []

    def advance(self, amount, **values):
        self.amount += amount
        if "loss" in values:
            self.losses.append(values["loss"])
        else:
            self.units.append((values["unit"], values["before"], values["after"]))


def fit(name, teacher, pixels, bits="W3A4", first_last=None, seed=0, log=None, runtime=None, **options):
    student = create(name, teacher.spec, {**FAST, **options}, runtime or Runtime())
    return student.fit(teacher, pixels, Bits.parse(bits), first_last=first_last, seed=seed, log=log)


@pytest.fixture(scope="module")
def fitted_once(teacher, pixels):
    """(name, iterations) -> the student at W3A4, fitted once for all tests that look at it."""
    return functools.cache(lambda name, iterations: fit(name, teacher, pixels, iterations=iterations))


@torch.no_grad()
def logits(model, pixels):
    return model.logits(model.spec.pixels_to_standard(pixels))


def quantizers(fitted, kind):
    modules = fitted.network.named_modules()
    return {name: m for name, m in modules if isinstance(m, FakeQuantizer) and m.kind == kind}


@pytest.mark.parametrize("name", STUDENTS)
def test_error_of_every_unit_falls_below_nearest_rounding(name, teacher, pixels):
    log = Log()
    fitted = fit(name, teacher, pixels, bits="W2A4", log=log)
    assert len(log.units) == {"adaround": 6, "brecq": 3 + 3, "qdrop": 4, "genie-m": 4}[name]
    weights = [unit for unit in log.units if name != "brecq" or unit in log.units[:3]]
    assert all(after <= before for _, before, after in weights)
    assert sum(after < 0.9 * before for _, before, after in weights) >= 2
    assert np.isfinite(log.losses).all() and torch.isfinite(logits(fitted, pixels)).all()
    exact, nearest = logits(teacher, pixels), fit(name, teacher, pixels, bits="W2A4", iterations=0)
    errors = [(logits(model, pixels) - exact).square().mean() for model in (fitted, nearest)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("network", NETWORKS)
def test_every_kind_of_network_is_reconstructed(network, pixels):
    log = Log()
    teacher = make_teacher(NETWORKS[network])
    fit("qdrop", teacher, pixels[:16], iterations=40, log=log)
    before, after = (sum(unit[i] for unit in log.units) for i in (1, 2))
    assert log.units and after < before


@pytest.fixture(scope="module")
def accuracies(digits, images, accuracy):
    """Points of nearest rounding and of each student at W2A4 on digits."""
    options = {"iterations": 30, "residual_stream": "float", "rounding_weight": 0.01}
    own = {"first_last": 8, "bits": "W2A4"}
    found = {"nearest": accuracy(fit("adaround", digits, images, **own, **options | {"iterations": 0}))}
    for name in STUDENTS:
        found[name] = accuracy(fit(name, digits, images, **own, **options))
    return found


def test_order_on_real_images(accuracies):
    noise = 3.0
    assert accuracies["nearest"] + 10 < accuracies["adaround"]
    assert accuracies["adaround"] - noise <= accuracies["brecq"]
    assert accuracies["brecq"] - noise <= max(accuracies["qdrop"], accuracies["genie-m"])


@pytest.mark.parametrize("name", STUDENTS[:3])
def test_eight_bit_weights_leave_the_output(name, teacher, pixels):
    fitted = fit(name, teacher, pixels, bits="W8A32", iterations=10, learning_rate=3e-5)
    exact = logits(teacher, pixels)
    assert (logits(fitted, pixels) - exact).norm() < 0.01 * exact.norm()


def integers(fitted, name):
    layer = fitted.network.get_submodule(name)
    quantizer = layer.weight_quantizer
    return layer.weight / quantizer.step + quantizer.zero_point


@pytest.mark.parametrize("name", STUDENTS)
def test_only_what_a_student_names_is_learned(name, teacher, fitted_once):
    before = copy.deepcopy(teacher.network.state_dict())
    start, end = fitted_once(name, 0), fitted_once(name, 20)
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.network.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.network.parameters())
    assert not any(p.requires_grad for p in end.network.parameters())
    old, new = start.network.state_dict(), end.network.state_dict()
    assert old.keys() == new.keys()
    learned = {key for key in old if not torch.equal(old[key], new[key])}
    steps_of = {kind: {f"{path}.step" for path in quantizers(end, kind)} for kind in ("weight", "activation")}
    convolutions = {key for key in old if key.endswith(".weight") and old[key].dim() > 1}
    expected = {"adaround": set(), "brecq": steps_of["activation"], "qdrop": steps_of["activation"]}
    expected["genie-m"] = steps_of["weight"] | steps_of["activation"]
    fixed = {"stem.0.weight"} if name == "brecq" else set()
    assert learned - convolutions == expected[name]
    assert learned & convolutions == convolutions - fixed
    bn = [key for key in old if "running" in key]
    assert bool(bn) == (name == "genie-m"), "genie-m alone keeps batch norms"


@pytest.mark.parametrize("name", STUDENTS)
def test_integers_are_whole_within_the_grid_and_next_to_the_float_weight(name, fitted_once):
    start, fitted = fitted_once(name, 0), fitted_once(name, 20)
    for path, quantizer in quantizers(fitted, "weight").items():
        layer = path.removesuffix(".weight_quantizer")
        if name == "brecq" and layer == "stem.0":
            continue
        whole = integers(fitted, layer)
        torch.testing.assert_close(whole, whole.round(), atol=1e-3, rtol=0)
        assert whole.round().min() >= quantizer.lo and whole.round().max() <= quantizer.hi
        base = integers(start, layer).floor().clamp(quantizer.lo, quantizer.hi)
        assert (whole.round() - base).abs().max() <= 1
        weight = fitted.network.get_submodule(layer).weight
        assert torch.equal(quantizer(weight), weight), "integers alone give the same weights"


@pytest.mark.parametrize("name", STUDENTS)
def test_same_seed_same_student_and_other_seed_another(name, teacher, pixels):
    state = torch.get_rng_state()
    one, same, other = (fit(name, teacher, pixels, seed=seed, iterations=4) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is nobody's"
    tensors = one.network.state_dict()
    assert all(torch.equal(tensor, same.network.state_dict()[key]) for key, tensor in tensors.items())
    assert not all(torch.equal(tensor, other.network.state_dict()[key]) for key, tensor in tensors.items())


def test_rounding_is_decided_at_the_end(pixels, monkeypatch):
    seen = []
    run = Engine.run

    def watched(self, network, *arguments):
        run(self, network, *arguments)
        seen.extend(m for m in network.modules() if isinstance(m, SoftRounding))

    monkeypatch.setattr(Engine, "run", watched)
    options = {"iterations": 150, "learning_rate": 0.003, "rounding_weight": 0.1, "batch": 4}
    fit("adaround", make_teacher(NETWORKS["plain"]), pixels, **options)
    bits = torch.cat([torch.sigmoid(m.variables.detach()).flatten() for m in seen]) * 1.2 - 0.1
    assert ((bits < 1e-3) | (bits > 1 - 1e-3)).float().mean() > 0.99


@pytest.mark.parametrize("num_images", [96, 256, 1024])
def test_a_batch_has_the_size_asked_for(num_images, monkeypatch):
    sizes = []
    rows = reconstruction.UnitData.rows

    def counted(self, index):
        sizes.append(len(index))
        return rows(self, index)

    monkeypatch.setattr(reconstruction.UnitData, "rows", counted)
    monkeypatch.setattr(Engine, "error", lambda *arguments: 0.0)
    teacher = make_teacher(NETWORKS["plain"], spec=image_spec(size=(8, 8)))
    pixels = torch.randint(0, 256, (num_images, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    fit("genie-m", teacher, pixels.to(torch.uint8), iterations=3, batch=32)
    assert sizes == [32] * 9


def data_of(name, teacher, pixels, monkeypatch, **options):
    """(network, phase, data) of each unit as the engine gets them, nothing trained."""
    seen = []
    monkeypatch.setattr(
        Engine, "run", lambda self, network, phase, data, *rest: seen.append((network, phase, data))
    )
    fit(name, teacher, pixels, **options)
    return seen


def test_prefix_changes_the_input_and_not_the_target(teacher, pixels, monkeypatch):
    index = torch.arange(len(pixels))
    targets = {}
    for name, bits in (("brecq", "W2A32"), ("qdrop", "W2A32"), ("qdrop", "W8A32")):
        rows = [data.rows(index) for _, _, data in data_of(name, teacher, pixels, monkeypatch, bits=bits)]
        targets[name, bits] = [target for _, _, target, _ in rows][-3:]
        for full, quantized, _, _ in rows[-3:]:
            assert not torch.equal(full, quantized)
    for one, two in zip(targets["brecq", "W2A32"], targets["qdrop", "W8A32"], strict=True):
        assert torch.equal(one, two)
    torch.testing.assert_close(targets["qdrop", "W2A32"][-1], logits(teacher, pixels), atol=1e-4, rtol=1e-4)


def test_activation_phase_of_brecq_sees_the_float_network(teacher, pixels, monkeypatch):
    seen = data_of("brecq", teacher, pixels, monkeypatch)
    assert [phase.name for _, phase, _ in seen] == ["weights"] * 3 + ["activations"] * 3
    assert all(data.quantized is None for _, phase, data in seen if phase.name == "activations")


def test_fisher_weights_of_the_last_layer_are_those_of_softmax(teacher, pixels, monkeypatch):
    index = torch.arange(len(pixels))
    *_, (network, _, data) = [
        entry
        for entry in data_of("brecq", teacher, pixels, monkeypatch, fisher=True, bits="W2A32")
        if entry[1].name == "weights"
    ]
    _, quantized, target, importance = data.rows(index)
    (rounding,) = (m for m in network.modules() if isinstance(m, SoftRounding))
    (linear,) = (m for m in network.modules() if isinstance(m, nn.Linear))
    student = quantized @ rounding(linear.weight).T + linear.bias
    gradient = student.softmax(1) - target.softmax(1)
    assert gradient.abs().max() > 0.05
    # Of a mean over 32 images.
    torch.testing.assert_close(importance, (gradient.abs() / 32 + 1) ** 2, atol=1e-6, rtol=1e-6)


def test_keeping_nothing_trains_weights_with_float_activations(teacher, pixels):
    dropped = fit("qdrop", teacher, pixels, bits="W3A2", keep=0.0, iterations=10)
    float_ = fit("qdrop", teacher, pixels, bits="W3A32", keep=0.0, iterations=10)
    for path in quantizers(float_, "weight"):
        layer = path.removesuffix(".weight_quantizer")
        weights = [model.network.get_submodule(layer).weight for model in (dropped, float_)]
        assert torch.equal(*weights), layer
    kept = fit("qdrop", teacher, pixels, bits="W3A2", keep=1.0, iterations=10)
    assert not torch.equal(*(model.network.get_parameter("second.1.weight") for model in (kept, dropped)))


def test_genie_m_without_its_additions_is_qdrop(teacher, pixels):
    class Reduced(GenieM):
        name = "qdrop"
        folds_batch_norm = True
        clips_each_end = True
        activation_quantizer = QDrop.activation_quantizer

        def phases(self, bits):
            (phase,) = super().phases(bits)
            groups = tuple(group for group in phase.groups if group.role != "weight step")
            return (reconstruction.replace(phase, groups=groups),)

    options = {**FAST, "iterations": 40, "second_input": None, "residual_stream": "float"}
    logs = Log(), Log()
    fit("qdrop", teacher, pixels, iterations=40, log=logs[0])
    Reduced(GenieMOptions(**options), Runtime()).fit(teacher, pixels, Bits(3, 4), first_last=8, log=logs[1])
    fit("genie-m", teacher, pixels, iterations=40, log=(full := Log()))
    assert logs[0].losses == logs[1].losses and logs[0].losses != full.losses


def test_published_policies_of_first_and_last_layers(teacher, pixels):
    bits = {}
    for name in STUDENTS:
        fitted = fit(name, teacher, pixels[:8], bits="W2A4", iterations=0)
        assert fitted.first_last == (None if name == "adaround" else 8)
        bits[name] = {row.name: row.bits for row in fitted.tensors}
    ends = ("stem.0.weight", "head.2.weight", "head.2.input")
    assert [bits["adaround"][end] for end in ends] == [2, 2, 4]
    assert all([bits[name][end] for end in ends] == [8, 8, 8] for name in STUDENTS[1:])
    assert [bits[name]["first.0.0.input"] for name in STUDENTS] == [4, 8, 4, 8]
    assert all(bits[name]["first.1.weight"] == 2 and bits[name]["first.1.input"] == 4 for name in STUDENTS)
    chosen = fit("brecq", teacher, pixels[:8], bits="W2A4", first_last=4, iterations=0)
    assert chosen.first_last == 4 and {row.name: row.bits for row in chosen.tensors}["stem.0.weight"] == 4


def test_residual_stream_is_quantized_where_asked(teacher, pixels):
    streams = [
        fit("genie-m", teacher, pixels, bits="W8A2", iterations=0, residual_stream=stream, second_input=None)
        for stream in ("float", "quantized")
    ]
    errors = [(logits(model, pixels) - logits(teacher, pixels)).square().mean() for model in streams]
    assert errors[0] < errors[1]
    assert len(streams[0].tensors) == len(streams[1].tensors), "no quantizer of its own"


def test_float_bits_are_the_float_network(teacher, pixels):
    fitted = fit("genie-m", teacher, pixels, bits="W32A32", first_last=32)
    assert fitted.tensors == ()
    torch.testing.assert_close(logits(fitted, pixels), logits(teacher, pixels), rtol=1e-4, atol=1e-4)
    assert {row.kind for row in fit("qdrop", teacher, pixels, bits="W32A4", iterations=2).tensors} == {
        "activation"
    }


def test_fewer_images_than_a_batch_and_bf16(teacher, pixels):
    fitted = fit("qdrop", teacher, pixels[:5], iterations=3, runtime=Runtime(precision="bf16"))
    assert torch.isfinite(logits(fitted, pixels)).all()


def test_features_in_a_file_give_the_same_student(teacher, pixels, monkeypatch):
    inside = fit("brecq", teacher, pixels, iterations=4)
    monkeypatch.setattr("zsq.fitting.features.RESIDENT_BYTES", 0)
    outside = fit("brecq", teacher, pixels, iterations=4)
    for key, tensor in inside.network.state_dict().items():
        assert torch.equal(tensor, outside.network.state_dict()[key])


def test_embedding_teachers_work_but_have_no_fisher_weights(pixels):
    embedder = make_teacher(Blocks, outputs=12, task="embed")
    for name in STUDENTS:
        assert fit(name, embedder, pixels[:16], iterations=2).task == Embed()
    with pytest.raises(MismatchError, match=r"fisher=true .* task 'embed'; expected a classifier"):
        fit("brecq", embedder, pixels[:16], fisher=True)


def test_a_network_that_cannot_be_captured_is_refused_in_one_line(pixels):
    class Branching(Blocks):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    network = Teacher("branching", Branching(3, 5), image_spec(), 5, "0" * 64)
    for name in STUDENTS:
        with pytest.raises(UntraceableError) as caught:
            fit(name, network, pixels)
        assert "cannot be captured" in str(caught.value) and "\n" not in str(caught.value)


@alone
def test_steps_are_compiled_once_per_structure_and_agree_with_eager(teacher, pixels, monkeypatch):
    compilations = []

    def backend(graph, inputs, **options):
        compilations.append(graph)
        return graph.forward

    # Without inductor's minutes of C++: the capture, which is ours, is what can break.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend, fullgraph=True))
    # At A8 the second input is as wide as the others, so both blocks are alike.
    student = create("genie-m", teacher.spec, {**FAST, "iterations": 3}, Runtime(compile=True))
    fitted = student.fit(teacher, pixels, Bits(4, 8))
    assert len(compilations) == 3, "stem, one for both blocks, head"
    student.fit(teacher, pixels, Bits(4, 8), seed=1)
    assert len(compilations) == 3
    eager = fit("genie-m", teacher, pixels, bits="W4A8", iterations=3)
    torch.testing.assert_close(logits(fitted, pixels), logits(eager, pixels), rtol=1e-3, atol=1e-3)


def test_progress_ends_at_what_the_estimate_says(teacher, pixels):
    for name in STUDENTS:
        log = Log()
        fit(name, teacher, pixels[:16], iterations=8, batch=4, log=log)
        student = create(name, teacher.spec, {"iterations": 8, "batch": 4}, Runtime())
        trained = student.images_trained(teacher, 16, Bits(4, 4))
        assert log.amount == trained == (40 if name == "brecq" else 32)
    brecq = create("brecq", teacher.spec, {"iterations": 8, "batch": 4}, Runtime())
    assert brecq.images_trained(teacher, 16, Bits(4, 32)) == 32


def test_a_fit_trains_at_the_rates_of_its_bits(teacher, pixels):
    seen = {}
    for bits, options in (("W8A8", {}), ("W8A8", {"rate_bits": 8}), ("W3A8", {}), ("W3A8", {"rate_bits": 8})):
        fitted = fit("genie-m", teacher, pixels[:8], bits=bits, iterations=3, **options)
        seen[bits, *options] = fitted.network.get_parameter("first.1.weight")
    assert not torch.equal(seen["W8A8",], seen["W8A8", "rate_bits"])
    assert torch.equal(seen["W3A8",], seen["W3A8", "rate_bits"])
