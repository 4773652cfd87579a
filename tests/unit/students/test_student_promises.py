"""What every student owes, whatever it does inside: one test per promise, over every student there is."""

import dataclasses
import functools
import math
from collections import Counter

import pytest
import torch
from tiny_students import fit, images_of, outputs, small_options, smallest_teacher, teacher_for
from torch import nn
from toys import NETWORKS, image_spec, unchanged, without_bn

import zsq
from zsq.core.errors import MismatchError, NoBatchNormError, OptionError, UntraceableError
from zsq.core.runtime import Runtime
from zsq.passes import PASSES
from zsq.quantizers.grids import Quantizer, holds_zero
from zsq.saved.cost import student_cost
from zsq.students import STUDENTS, create
from zsq.tasks.classify import Classify
from zsq.tasks.embed import Embed
from zsq.widths import FLOAT_BITS, LEAST_BITS, MOST_BITS, Bits

SPECS = {
    "grey": image_spec(channels=1),
    "wide": image_spec(size=(8, 20)),
    "resized": image_spec(size=(8, 8), input_size=(16, 16)),
    "five-channel": image_spec(channels=5, size=(9, 7)),
}
# One fit for each kind of network, and among them every shape of images and most widths; of the plain network
# are the other tests.
FITS = {
    "depthwise": ("W3A3", SPECS["grey"]),
    "dropout": ("W4A4", image_spec()),
    "pre-activation": ("W4A4", SPECS["wide"]),
    "downsample": ("W6A6", SPECS["resized"]),
    "squeeze-excite": ("W7A7", SPECS["five-channel"]),
    "dense": ("W8A8", image_spec()),
}
# Passes that can stand together, in an order in which they can.
TOGETHER = (
    ["fold", "relu6-to-relu", "equalize", "absorb-bias", "smooth", "prune", "correct-bias-analytic"],
    ["prune-global", "correct-bias", "adapt-bn"],
)


@pytest.fixture(params=list(STUDENTS))
def name(request):
    return request.param


def fitted_on(name, teacher, count=12, bits="W4A4", **options):
    return fit(name, teacher, images_of(teacher, count), bits, **options)


@functools.cache
def plain_fit(name):
    """For tests that ask nothing else; nobody may change it."""
    return fitted_on(name, teacher_for(name))


def check(fitted, teacher):
    """Outputs of the teacher's shape; each row is a quantizer of the network, which alone are there."""
    given = outputs(fitted, images_of(teacher, 3))
    assert given.shape == (3, teacher.num_outputs) and given.isfinite().all()
    assert fitted.spec == teacher.spec and fitted.task == teacher.task
    rows = {row.name: row for row in fitted.tensors}
    found = {}
    for path, module in fitted.network.named_modules():
        if isinstance(module, Quantizer):
            layer, _, place = path.rpartition(".")
            found[f"{layer}.{place.replace('_quantizer', '')}"] = module
    assert rows.keys() == found.keys() and len(rows) == len(fitted.tensors)
    for key, row in rows.items():
        quantizer = found[key]
        low, high = quantizer.bounds
        assert (row.kind, row.num_scales, row.signed) == (
            quantizer.kind, quantizer.num_scales, quantizer.signed
        )  # fmt: skip
        assert high - low < 2**row.bits
        if row.kind == "weight":
            integers = quantizer.integers(fitted.network.get_parameter(key))
            assert integers.min() >= low and integers.max() <= high
            assert torch.equal(integers, integers.round())
    assert not any(p.requires_grad for p in fitted.network.parameters()) and not fitted.network.training


def test_facts_and_name(name):
    cls = STUDENTS[name]
    assert cls.name == name and cls.facts.paper and cls.facts.summary and cls.__doc__
    assert cls.facts.data_read == "none" and not cls.facts.needs_real
    assert set(cls.refused_passes) <= set(PASSES) and all(cls.refused_passes.values())


def test_options_that_cannot_work_are_one_line(name):
    options_class = STUDENTS[name].options_class
    with pytest.raises(OptionError, match=f"{name} has no option 'no_such_option'"):
        options_class.resolve(name, image_spec(), {"no_such_option": 1})
    for key in options_class.model_fields:
        with pytest.raises(OptionError, match=f"{name}: {key}") as caught:
            wrong = -1 if not isinstance(getattr(options_class(), key), bool) else "maybe"
            options_class.resolve(name, image_spec(), {key: wrong})
        assert "\n" not in str(caught.value)


def test_the_seed_decides_and_no_global_randomness(name):
    """With more than one batch of images; the seed is a large one."""
    teacher = smallest_teacher(name)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = fitted_on(name, teacher, count=40, bits="W3A4", seed=2**62)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again = fitted_on(name, teacher, count=40, bits="W3A4", seed=2**62)
    pixels = images_of(teacher, 4)
    assert torch.equal(outputs(first, pixels), outputs(again, pixels))
    tensors = again.network.state_dict()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in first.network.state_dict().items())
    assert first.tensors == again.tensors and {row.kind for row in first.tensors} == {"weight", "activation"}


def check_widths(fitted, bits):
    asked, kinds = Bits.parse(bits), {row.kind for row in fitted.tensors}
    assert ("weight" in kinds) == (asked.weights != FLOAT_BITS)
    assert ("activation" in kinds) == (asked.activations != FLOAT_BITS)
    assert all(LEAST_BITS <= row.bits <= MOST_BITS for row in fitted.tensors)


def is_saved(name, network):
    """Every third: each student with two kinds of network, each of these with many students."""
    return (list(STUDENTS).index(name) + list(FITS).index(network)) % 3 == 0


@pytest.mark.parametrize("network", FITS)
def test_teachers_of_every_kind(name, network, tmp_path):
    """Fitted, the teacher left as it was; some the same after the student was written and read. Of the plain
    one, `test_saving.py` has more."""
    bits, spec = FITS[network]
    teacher = teacher_for(name, NETWORKS[network], spec=spec)
    pixels = images_of(teacher)
    given = pixels.clone()
    with unchanged(teacher):
        fitted = fit(name, teacher, pixels, bits, first_last=None)
    assert torch.equal(pixels, given)
    check(fitted, teacher)
    check_widths(fitted, bits)
    if is_saved(name, network):
        zsq.save_student(fitted, teacher, tmp_path)
        loaded = zsq.load_student(tmp_path)
        assert torch.equal(outputs(loaded, pixels[:4]), outputs(fitted, pixels[:4]))
        assert (loaded.tensors, loaded.made) == (fitted.tensors, fitted.made)


def test_every_kind_and_shape_is_among_the_fits():
    assert {*FITS, "plain"} == set(NETWORKS)
    assert set(SPECS.values()) <= {spec for _, spec in FITS.values()}


@pytest.mark.parametrize("bits", ["W2A2", "W4A4", "W32A32", "W4A32", "W32A4"])
def test_other_widths_and_complete_progress(name, bits):
    """Of the widths between are the students of the other tests."""
    amounts = []

    class Log:
        def advance(self, amount, **values):
            amounts.append(amount)
            assert amount >= 0 and all(math.isfinite(value) for value in values.values())

    teacher = teacher_for(name)
    pixels, options, asked = images_of(teacher), small_options(name), Bits.parse(bits)
    if bits == "W4A4":
        options = {key: 24 if key == "iterations" else value for key, value in options.items()}
    student = create(name, teacher.spec, options, Runtime())
    if name == "dqnet" and bits in ("W2A2", "W4A32", "W32A4"):
        with pytest.raises(OptionError, match=f"{bits} with student dqnet; expected W3A3 to W8A8"):
            student.fit(teacher, pixels, asked)
        return
    fitted = student.fit(teacher, pixels, asked, log=Log())
    check(fitted, teacher)
    check_widths(fitted, bits)
    trained = student.images_trained(teacher, len(pixels), asked)
    assert sum(amounts) == student.log_total(teacher, len(pixels), asked) >= trained
    work = student.training_work(teacher, len(pixels), asked)
    assert math.isfinite(work)
    if bits in ("W4A4", "W32A32"):
        assert bits == "W4A4" or (trained > 0) == (name in ("kd", "gdfq-ft"))
        searches = name == "mixed" and bits == "W4A4"
        assert (work > 0) == (trained > 0 or searches)


@pytest.mark.parametrize(("first_last", "count"), [(2, 1), (MOST_BITS, 12), (FLOAT_BITS, 1)])
def test_first_and_last_layer(name, first_last, count):
    """Fitted on one image, too."""
    teacher = teacher_for(name)
    fitted = fitted_on(name, teacher, count=count, bits="W5A5", first_last=first_last)
    check(fitted, teacher)
    layers = [row.name for row in fitted.tensors if row.kind == "weight"]
    widths = {row.name: row.bits for row in fitted.tensors}
    ends = {name for name in layers if name.startswith(("0.0.", "0.0_coarse.", "2.2."))}
    if first_last == FLOAT_BITS:
        assert not ends and layers
    else:
        assert ends and {widths[name] for name in ends} == {first_last}
        assert widths["2.2.input"] == first_last
    others = {widths[name] for name in layers if name not in ends}
    # Whose bits are chosen.
    assert others == {5} or name in ("mixed", "dqnet")
    assert fitted.first_last == first_last


@pytest.mark.parametrize(
    "name", [name for name, cls in STUDENTS.items() if "first_last" in cls.options_class.model_fields]
)
def test_the_option_first_last_is_checked_like_the_argument(name):
    student = create(name, image_spec(), {"first_last": 1}, Runtime())
    if student.least_bits == Bits(1, 1):
        student.check_bits(Bits(4, 4), None)
    else:
        with pytest.raises(OptionError, match="first and last layer of 1 bit"):
            student.check_bits(Bits(4, 4), None)


class ControlFlow(nn.Module):
    """Goes on as the values of its images have it."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, 3, 2, 1)

    def forward(self, x):
        y = self.conv(x)
        return y.mean((2, 3)) if y.sum() > 0 else y.amax((2, 3))


def test_refused_teachers_and_images_are_one_line(name):
    teacher = teacher_for(name)
    pixels = images_of(teacher)
    student = create(name, teacher.spec, small_options(name), Runtime())
    for wrong, given, kind in (
        (teacher_for(name, ControlFlow), pixels, UntraceableError),
        (teacher, pixels[:, :, 1:], MismatchError),
        (teacher, pixels.float(), MismatchError),
        (teacher, pixels[:0], MismatchError),
    ):
        with pytest.raises(kind) as caught:
            student.fit(wrong, given, Bits(4, 4))
        assert "\n" not in str(caught.value)


def test_the_other_task_works_or_is_refused_in_one_line(name):
    other = dataclasses.replace(teacher_for(name), task=Classify() if name == "quantface" else Embed())
    student = create(name, other.spec, small_options(name), Runtime())
    try:
        check(student.fit(other, images_of(other), Bits(4, 4)), other)
    except MismatchError as error:
        assert "expected" in str(error) and "use" in str(error) and "\n" not in str(error)


def test_a_network_without_batch_norm_works_or_is_refused_in_one_line(name):
    teacher = teacher_for(name, without_bn)
    if STUDENTS[name].facts.needs_batch_norm:
        with pytest.raises(NoBatchNormError, match="no batch norm"):
            fitted_on(name, teacher)
    elif name == "dqnet":  # it has a first and a last layer alone
        with pytest.raises(MismatchError, match="no layers of W4A4 behind"):
            fitted_on(name, teacher)
    else:
        check(fitted_on(name, teacher), teacher)


def refused_passes(name):
    cls = STUDENTS[name]
    refused = set(cls.refused_passes) | ({"adapt-bn"} if cls.folds_batch_norm else set())
    refused |= set() if holds_zero(cls.form) else {"prune", "prune-global"}
    return refused | {one for one, made in PASSES.items() if refused.intersection(made.needs)}


def written(passes):
    return [f"{one}=0.5" if PASSES[one].takes else one for one in passes]


@pytest.mark.parametrize("analytic", list(PASSES))
def test_passes_are_refused_as_declared(name, analytic):
    passes = written([*PASSES[analytic].needs, analytic])
    arguments = (name, image_spec(), small_options(name), Runtime())
    if analytic not in refused_passes(name):
        create(*arguments, passes=passes)
        return
    with pytest.raises(OptionError, match=f"student {name} takes no pass"):
        create(*arguments, passes=passes)


@pytest.mark.parametrize("together", TOGETHER, ids=["folded", "with batch norms"])
def test_the_other_passes_are_taken(name, together):
    teacher = teacher_for(name)
    passes = written([one for one in together if one not in refused_passes(name)])
    student = create(name, teacher.spec, small_options(name), Runtime(), passes=passes)
    fitted = student.fit(teacher, images_of(teacher), Bits(4, 4))
    check(fitted, teacher)
    assert fitted.made.passes == tuple(passes)


def test_every_pass_is_taken_together_with_others():
    assert {one for together in TOGETHER for one in together} == set(PASSES)


def test_the_cost_is_counted(name):
    """By hand: images of 16x16, maps of 8x8 and 4x4 by kernels 3x3, then 12x5; cfws adds its centres."""
    cost = student_cost(plain_fit(name))
    macs = {"0.0": 64 * 27 * 8, "1.0": 16 * 72 * 12, "2.2": 60}
    counted = Counter()
    for layer in cost.layers:
        # Of dqnet, some images pass 1.0_narrow or 1.0_wide instead.
        counted[layer.name.removesuffix("_narrow").removesuffix("_wide")] += layer.macs
    for layer, expected in macs.items():
        assert counted[layer] == expected
    own = {"cfws": 64 * 3 * 8 + 16 * 8 * 12, "dqnet": 64 * 8 * 64 + 64 * 3}.get(name, 0)
    assert cost.macs == sum(macs.values()) + own
    assert 0 < cost.bit_operations < cost.float_bit_operations


def test_two_networks_of_one_student_do_not_mix(name):
    """A student that keeps what it compiled for one teacher serves another one."""
    teachers = [teacher_for(name, seed=seed) for seed in (0, 1)]
    shared = create(name, teachers[0].spec, small_options(name), Runtime())
    pixels = images_of(teachers[0])
    for teacher in reversed(teachers):
        found = shared.fit(teacher, pixels, Bits(4, 4), first_last=8)
    assert torch.equal(outputs(found, pixels), outputs(plain_fit(name), pixels))
