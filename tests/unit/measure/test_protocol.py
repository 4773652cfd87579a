"""Which fits a comparison makes, in which order, and what it refuses."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from zsq import students
from zsq.contract import Facts, Student, Teacher
from zsq.core.errors import MismatchError, OptionError, TeacherAccuracyError, UnknownNameError
from zsq.core.imagespec import ImageSpec
from zsq.core.options import Options
from zsq.core.runtime import Runtime
from zsq.measure.evaluate import score_teacher
from zsq.measure.gap import fit_and_score, gaps_from_rows, rows_from_runs
from zsq.measure.protocol import Protocol, StudentSpec, fit_key, resolve_students
from zsq.widths import Bits

SPEC = ImageSpec(channels=1, size=(4, 4), mean=(0.5,), std=(0.25,))


@dataclass
class Images:
    pixels: torch.Tensor
    labels: torch.Tensor


def conv_teacher(expected_accuracy=None):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    return Teacher("conv", network, SPEC, 3, "0" * 64, expected_accuracy=expected_accuracy)


def pixels(count, seed):
    return torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).byte()


EVAL = Images(pixels(30, 99), torch.arange(30) % 3)
ARMS = {
    "real": [pixels(6, 1), pixels(6, 2)],
    "dsg": [pixels(6, 3), pixels(6, 4)],
    "noise": [pixels(6, 5)],
}


class ScaleOptions(Options):
    scale: float = 1.0


class Fake(Student):
    """Turns the teacher's last bias by the images' mean, the seed and an option; remembers its calls."""

    name = "fake"
    facts = Facts(paper="none", summary="a stand-in")
    options_class = ScaleOptions
    calls: list = []  # noqa: RUF012

    def run(self, fit):
        brightness = fit.pixels_NCHW.float().mean()
        Fake.calls.append((float(brightness), str(fit.bits), fit.first_last, fit.seed))
        shift = torch.tensor([brightness / 255, 0.0, 0.1 * fit.seed]) * self.options.scale
        return self.result(fit, nn.Sequential(fit.teacher.network, Shift(shift)).eval(), ())


class Shift(nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, logits):
        return logits + self.shift


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(students.STUDENTS, "fake", Fake)
    monkeypatch.setattr(Fake, "calls", [])
    return StudentSpec("fake", Bits(4, 4), {"scale": 2.0}, first_last=8)


def protocol_of(specs, seeds=2, teacher=None):
    students = resolve_students(specs, SPEC, Runtime())
    return Protocol(
        teacher or conv_teacher(), EVAL, [Images(ARMS["real"][0], None)], students, seeds, Runtime()
    )


def measure(specs, arms=ARMS, seeds=2, teacher=None, **keywords):
    protocol = protocol_of(specs, seeds, teacher)
    reference = score_teacher(protocol.teacher, EVAL, Runtime())
    return fit_and_score(protocol, arms, reference, **keywords)


def test_every_set_seed_and_student_is_fitted_and_scored(fake):
    low = StudentSpec("fake", Bits(2, 8))
    records = measure([fake, low])
    assert len(records) == len(protocol_of([fake, low]).fits(ARMS)) == (2 + 2 + 1) * 2 * 2
    assert len(Fake.calls) == 20
    first = records[0]
    assert {k: v for k, v in first.items() if k not in ("metrics", "seconds")} == {
        "source": "real",
        "shard_set": 0,
        "seed": 0,
        "student": "fake",
        "bits": "W4A4",
        "first_last": 8,
        "options": {"scale": 2.0},
        "num_images": 6,
    }
    teacher = conv_teacher()
    logits = teacher.network((EVAL.pixels.float() / 255 - 0.5) / 0.25).detach()
    shifted = logits + 2 * torch.tensor([ARMS["real"][0].float().mean() / 255, 0.0, 0.0])
    noise = (shifted - logits).square().sum()
    centred = (logits - logits.mean(0)).square().sum()
    assert first["metrics"] == {
        "accuracy": pytest.approx(100 * (shifted.argmax(1) == EVAL.labels).double().mean().item()),
        "agreement": pytest.approx(100 * (shifted.argmax(1) == logits.argmax(1)).double().mean().item()),
        "sqnr": pytest.approx(10 * (logits.square().sum() / noise).log10().item(), abs=1e-4),
        "sqnr_centred": pytest.approx(10 * (centred / noise).log10().item(), abs=1e-4),
    }
    assert Fake.calls[0] == (float(ARMS["real"][0].float().mean()), "W4A4", 8, 0)


def test_a_student_may_take_fewer_sets_than_there_are(fake):
    arms = dict.fromkeys(("real", "noise"), range(3))

    def count(specs, seeds):
        return len(protocol_of(specs, seeds).fits(arms))

    fewer = replace(fake, shard_sets=2)
    assert count([fake], 2) == 12 and count([fewer], 2) == 8
    assert count([fake, replace(fewer, bits=Bits(2, 4))], 1) == 10
    assert count([replace(fake, shard_sets=9)], 1) == 6


def test_a_stopped_run_leaves_whole_comparisons_and_resumes(fake):
    stored = []
    partial = measure(
        [fake], on_run=lambda record, fitted: stored.append(record), should_stop=lambda: len(stored) == 6
    )
    assert partial == stored and len(stored) == 6
    assert {r["shard_set"] for r in partial} == {0}
    assert [r["source"] for r in partial] == ["real", "dsg", "noise"] * 2
    loaded = json.loads(json.dumps(stored))
    rest = []
    records = measure([fake], done=loaded, on_run=lambda record, fitted: rest.append(fitted))
    assert len(records) == 10 and records[:6] == stored and len(Fake.calls) == 10
    assert [fitted.student for fitted in rest] == ["fake"] * 4
    assert measure([fake], done=records[3:], should_stop=lambda: True) == records[3:]


def test_a_finished_run_is_not_repeated_and_other_options_are(fake):
    done = measure([fake])
    Fake.calls.clear()
    assert measure([fake], done=done) == done and not Fake.calls
    measure([StudentSpec("fake", Bits(4, 4), {"scale": 3.0}, 8)], done=done)
    assert len(Fake.calls) == 10


def test_one_student_with_several_options_is_told_apart_by_what_it_is_called(fake):
    one, other = (replace(fake, called=f"fake-{scale}", options={"scale": scale}) for scale in (1.0, 3.0))
    records = measure([one, other])
    assert {record["student"] for record in records} == {"fake-1.0", "fake-3.0"}
    assert {(record["name"], record["options"]["scale"]) for record in records} == {("fake", 1), ("fake", 3)}
    Fake.calls.clear()
    done = json.loads(json.dumps(records))
    for record in done:
        if record["student"] == "fake-1.0":
            del record["options"]["scale"]  # made before there was the option, so with its default
    measure([one, other], done=done)
    assert not Fake.calls


@pytest.mark.parametrize(
    "arms, error, text",
    [
        (
            {"real": [pixels(6, 1)], "dsg": [pixels(5, 1)]},
            MismatchError,
            "5 images in dsg set 0; expected 6;",
        ),
        ({"real": [pixels(6, 1)[:, :, :3]]}, MismatchError, r"images of real set 0 of shape \(6, 1, 3, 4\)"),
        ({"real": [], "dsg": [pixels(5, 1)]}, OptionError, "'real' has no shard set"),
    ],
)
def test_unequal_arms_are_refused_in_one_line(fake, arms, error, text):
    with pytest.raises(error, match=text) as caught:
        measure([fake], arms)
    assert "\n" not in str(caught.value) and not Fake.calls


def test_wrong_protocols_are_refused_before_any_fit(fake):
    with pytest.raises(OptionError, match="--seeds 0"):
        measure([fake], seeds=0)
    with pytest.raises(OptionError, match="fake W4A4 is named twice"):
        measure([fake, fake])
    with pytest.raises(TeacherAccuracyError):
        measure([fake], teacher=conv_teacher(expected_accuracy=99.9))
    with pytest.raises(UnknownNameError, match="'fakke'"):
        measure([fake, StudentSpec("fakke", Bits(4, 4))])
    with pytest.raises(OptionError, match="no option 'size'"):
        measure([fake, StudentSpec("ptq", Bits(4, 4), {"size": 1})])
    assert not Fake.calls


def test_only_fits_of_the_same_settings_belong(fake):
    protocol = protocol_of([fake])
    done = measure([fake])
    changes = [{"seed": 5}, {"shard_set": 2}, {"source": "zeroq"}, {"num_images": 7}, {"first_last": 4}]
    changes += [{"options": {"scale": 3.0}}, {"options": {"scale": 2.0, "of another version": 1}}]
    others = [{**done[0], **change} for change in changes]
    assert protocol.belonging([*others, *done], ARMS) == done
    assert protocol.belonging(done, {"real": ARMS["real"][:1]}) == [done[0], done[3]]


def test_an_option_that_a_record_lacks_has_its_default(fake):
    plain = StudentSpec("fake", Bits(4, 4))
    record = measure([plain], seeds=1)[0]
    assert record["options"] == {"scale": 1.0}
    assert fit_key({**record, "options": {}}) == fit_key(record)
    assert protocol_of([plain], 1).belonging([{**record, "options": {}}], ARMS)


def test_a_student_is_created_once_for_all_its_fits(fake, monkeypatch):
    created = []
    start = Fake.__init__
    monkeypatch.setattr(Fake, "__init__", lambda self, *args: (created.append(self), start(self, *args))[1])
    assert len(measure([fake])) == 10 and len(created) == 1


def test_a_weight_only_student_has_no_gap_at_all():
    spec = StudentSpec("ptq", Bits(4, 32), {"weight_observer": "minmax"})
    gaps = gaps_from_rows(rows_from_runs(measure([spec], seeds=1)))
    assert gaps and all(gap.gap == 0.0 for gap in gaps)
    assert [gap.ci95 for gap in gaps if gap.source == "dsg"] == [(0.0, 0.0)] * 4


def test_fits_that_train_once_follow_each_other(fake, monkeypatch):
    """Of every source and seed; records keep the protocol's order."""
    monkeypatch.setattr(Fake, "training_key", lambda self, bits, first_last: first_last)
    specs = [replace(fake, bits=Bits(width, width), first_last=8) for width in (4, 2)]
    arms = {source: sets[:1] for source, sets in ARMS.items()}
    records = measure(specs, arms)
    order = [(brightness, seed) for brightness, _, _, seed in Fake.calls]
    assert order[::2] == order[1::2] and len(set(order)) == 6
    planned = [(fit.source, fit.seed, str(fit.student.spec.bits)) for fit in protocol_of(specs).fits(arms)]
    assert [(r["source"], r["seed"], r["bits"]) for r in records] == planned
    Fake.calls.clear()
    measure([*specs, replace(fake, bits=Bits(3, 3), first_last=4)], arms, done=records[::2], seeds=1)
    assert [bits for _, bits, _, _ in Fake.calls].count("W3A3") == 3
