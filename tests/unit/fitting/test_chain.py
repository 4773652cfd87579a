"""Students that start from another one's result."""

import dataclasses
import json

import pytest
import torch
from commands import call
from tiny_students import outputs
from toys import NETWORKS, image_spec, make_teacher, structured_images

import zsq
from zsq import workflow
from zsq.config import GapConfig
from zsq.contract import THEN
from zsq.core.errors import MismatchError, OptionError, UnknownNameError
from zsq.core.runtime import Runtime
from zsq.images.imageset import ImageSet
from zsq.measure.evaluate import score_teacher
from zsq.measure.gap import fit_and_score
from zsq.measure.protocol import Protocol, StudentSpec, resolve_students
from zsq.quantizers.grids import FakeQuantizer
from zsq.recipefile import load_recipe
from zsq.students import STUDENTS, create, own_defaults_line, student_class
from zsq.widths import Bits

NAME = "genie-m,lsq-kd"
SHORT = {"genie-m": {"iterations": 3, "batch": 16}, "lsq-kd": {"iterations": 3, "batch": 16}}
FOLLOWERS = [name for name, cls in STUDENTS.items() if cls.starts_from]


def short(name, **more):
    """Options of a student or chain that make its fit short."""
    given = {}
    for each in name.split(THEN):
        fields = STUDENTS[each].options_class.model_fields
        prefix = f"{each}." if THEN in name else ""
        given |= {prefix + key: 3 for key in ("iterations",) if key in fields}
        given |= {prefix + key: 16 for key in ("batch",) if key in fields}
    return given | more


def made(name, teacher, **more):
    return create(name, teacher.spec, short(name, **more), Runtime())


def fit(name, teacher, pixels, bits="W3A4", **arguments):
    return made(name, teacher).fit(teacher, pixels, Bits.parse(bits), **arguments)


@pytest.fixture(scope="module")
def teacher(tiny_teacher):
    return tiny_teacher


@pytest.fixture(scope="module")
def pixels(teacher):
    return teacher.spec.standard_to_pixels(structured_images((32, *teacher.spec.shape)))


@pytest.fixture(scope="module")
def chained(teacher, pixels):
    return fit(NAME, teacher, pixels, seed=4)


def test_a_chain_is_what_its_students_do_by_hand(teacher, pixels, chained):
    first = fit("genie-m", teacher, pixels, seed=4)
    before = outputs(first, pixels)
    second = made("lsq-kd", teacher).fit(teacher, pixels, first.bits, seed=4, start=first)
    assert torch.equal(outputs(second, pixels), outputs(chained, pixels))
    assert dataclasses.replace(second, network=chained.network) == chained
    assert not torch.equal(outputs(second, pixels), before)
    # The start is left as it was.
    assert torch.equal(outputs(first, pixels), before) and first.student == "genie-m"


def test_it_says_who_made_it_and_how(teacher, pixels, chained):
    assert (chained.student, chained.first_last, chained.bits) == (NAME, 8, Bits(3, 4))
    options = chained.made.options
    assert options["genie-m.iterations"] == 3 and options["lsq-kd.batch"] == 16
    for name in NAME.split(THEN):
        kind = STUDENTS[name].options_class
        stated = kind.model_fields.keys() - kind.marked("later")
        assert {f"{name}.{key}" for key in stated} <= set(options)
    assert (chained.made.seed, chained.made.num_images, chained.made.passes) == (4, 32, ())
    again = create(NAME, teacher.spec, options, Runtime())
    assert again.options.model_dump(mode="json") == options
    # Made by hand from two sets of images, or from a start of unknown making, there is no one record.
    first = fit("ptq", teacher, pixels)
    assert fit("lsq-kd", teacher, pixels[:20], start=first).made is None
    assert fit("lsq-kd", teacher, pixels, start=dataclasses.replace(first, made=None)).made is None
    assert fit("lsq-kd", teacher, pixels, start=first).made.options["ptq.observer"] == "mse"


@pytest.mark.parametrize("second", FOLLOWERS)
@pytest.mark.parametrize("first", [name for name in STUDENTS if name != "quantface"])
def test_every_start_is_taken_over_as_it_is_or_refused(teacher, pixels, first, second):
    """Without a step the second student gives what the first gave."""
    name, options = f"{first},{second}", {f"{second}.iterations": 0}
    if first == second:
        with pytest.raises(OptionError, match=f"student {first} twice in {name}"):
            student_class(name)
        return
    if STUDENTS[first].form not in STUDENTS[second].starts_from:
        with pytest.raises(
            OptionError, match=f"student {second} cannot start from {STUDENTS[first].form} grids"
        ):
            made(name, teacher, **options)
        return
    start = fit(first, teacher, pixels)
    fitted = made(name, teacher, **options).fit(teacher, pixels, start.bits)
    assert torch.equal(outputs(fitted, pixels), outputs(start, pixels))
    assert fitted.tensors == start.tensors and fitted.student == name
    assert fitted.first_last == start.first_last


@pytest.mark.parametrize("network", ["downsample", "squeeze-excite"])
def test_networks_of_other_kinds(network):
    other = make_teacher(NETWORKS[network])
    drawn = other.spec.standard_to_pixels(structured_images((12, *other.spec.shape)))
    fitted = fit(NAME, other, drawn)
    assert fitted.tensors == fit("genie-m", other, drawn).tensors and outputs(fitted, drawn).isfinite().all()


def test_all_weights_learn_from_the_start(teacher, pixels):
    """Those on the last level of their grid too."""
    start = fit("genie-m", teacher, pixels, bits="W4A4")
    student = made("lsq-kd", teacher, **{"learning_rate": 1e-4, "step_learning_rate": 1e-9})
    fitted = student.fit(teacher, pixels, start.bits, start=start)
    for row in fitted.tensors:
        if row.kind == "weight":
            before, after = (each.network.get_parameter(row.name) for each in (start, fitted))
            # A weight without a gradient stays, to the last bit but one.
            moved = (before - after).abs() > 1e-6
            grid = start.network.get_submodule(row.name.replace(".weight", ".weight_quantizer"))
            integers = grid.integers(before)
            last = integers == grid.hi
            assert last.any() and moved[last].float().mean() > 0.9


def test_work_adds_up(teacher, pixels):
    class Log:
        total = 0

        def advance(self, amount, **values):
            self.total += amount

    for name, zero in ((NAME, ()), ("ptq,lsq-kd", ()), ("ptq,kd", ("kd.iterations",))):
        student, log = made(name, teacher, **dict.fromkeys(zero, 0)), Log()
        student.fit(teacher, pixels, Bits(4, 4), log=log)
        parts = [made(each, teacher) for each in name.split(THEN)]
        trained = 0 if zero else sum(part.images_trained(teacher, 32, Bits(4, 4)) for part in parts)
        assert student.images_trained(teacher, 32, Bits(4, 4)) == trained
        assert log.total == (trained or 32)


def test_kd_keeps_the_grids_and_lsq_kd_learns_them(teacher, pixels):
    start = fit("genie-m", teacher, pixels)
    grids = {}
    for second in ("kd", "lsq-kd"):
        fitted = fit(second, teacher, pixels, start=start)
        pairs = [
            (part.step, fitted.network.get_submodule(path).step)
            for path, part in start.network.named_modules()
            if isinstance(part, FakeQuantizer)
        ]
        grids[second] = [torch.equal(*pair) for pair in pairs]
    assert all(grids["kd"]) and not any(grids["lsq-kd"])


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        ("genie-m,nothing", {}, UnknownNameError, "unknown student 'nothing'"),
        ("genie-m,", {}, UnknownNameError, "unknown student ''"),
        ("genie-m,ptq", {}, OptionError, "student ptq cannot start from the result of genie-m; expected one"),
        ("lsq-kd,genie-m", {}, OptionError, "student genie-m cannot start from the result of lsq-kd"),
        (
            "ptq,kd",
            {"kd.start": "random", "kd.batch_norm": "train"},
            OptionError,
            "kd with start=random behind",
        ),
        ("ptq,lsq-kd", {"lsq-kd.granularity": "tensor"}, OptionError, "expected granularity=channel"),
        (
            NAME,
            {"iterations": 3},
            OptionError,
            "no option 'iterations'; expected STUDENT.KEY with a student of",
        ),
        (NAME, {"ptq.observer": "kl"}, OptionError, "no option 'ptq.observer'"),
        (NAME, {"genie-m": 3}, OptionError, "no option 'genie-m'"),
        (NAME, {"genie-m.bogus": 3}, OptionError, "student genie-m has no option 'bogus'"),
        (NAME, {"lsq-kd.batch": 0}, OptionError, "student lsq-kd: batch"),
    ],
)
def test_chains_that_cannot_be_are_one_line(teacher, name, options, kind, message):
    with pytest.raises(kind) as caught:
        create(name, teacher.spec, options, Runtime())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_starts_that_cannot_be_are_one_line(teacher, pixels):
    start, lsq = fit("ptq", teacher, pixels), made("lsq-kd", teacher)
    with pytest.raises(OptionError, match="student ptq cannot start from the result of ptq"):
        made("ptq", teacher).fit(teacher, pixels, start.bits, start=start)
    with pytest.raises(MismatchError, match=r"a start of W3A4, .*; expected W4A4"):
        lsq.fit(teacher, pixels, Bits(4, 4), start=start)
    with pytest.raises(MismatchError, match="expected W3A4, first and last layer 8"):
        lsq.fit(teacher, pixels, start.bits, first_last=8, start=start)
    with pytest.raises(OptionError, match="cannot start from interval grids, as qfd has"):
        lsq.fit(teacher, pixels, start.bits, start=fit("qfd", teacher, pixels))
    passed = create("lsq-kd", teacher.spec, {}, Runtime(), passes=["fold"])
    with pytest.raises(OptionError, match="between passes, from the result of ptq"):
        passed.fit(teacher, pixels, start.bits, start=start)
    with pytest.raises(MismatchError, match="a start of another image spec"):
        other = make_teacher(spec=image_spec(size=(8, 20)))
        lsq.fit(other, torch.zeros(4, 3, 8, 20, dtype=torch.uint8), start.bits, start=start)


def test_teachers_are_refused_before_the_first_fit(teacher, pixels, monkeypatch):
    from zsq.fitting.unitwise import UnitwiseStudent
    from zsq.tasks.other import Other

    monkeypatch.setattr(UnitwiseStudent, "run", lambda *arguments: pytest.fail("fitted"))
    other = dataclasses.replace(teacher, task=Other(), expected_accuracy=None)
    with pytest.raises(MismatchError, match="has no loss"):
        fit(NAME, other, pixels)


def test_a_loaded_student_is_a_start(teacher, pixels, tmp_path):
    start = fit("qdrop", teacher, pixels)
    zsq.save_student(start, teacher, tmp_path)
    loaded = zsq.load_student(tmp_path)
    found, expected = (fit("lsq-kd", teacher, pixels, start=each) for each in (loaded, start))
    assert torch.equal(outputs(found, pixels), outputs(expected, pixels)) and found.made == expected.made


def test_passes_surround_the_whole_chain(teacher, pixels):
    arguments = (NAME, teacher.spec, short(NAME), Runtime())
    fitted = create(*arguments, passes=["fold", "correct-bias"]).fit(teacher, pixels, Bits(4, 4))
    assert fitted.made.passes == ("fold", "correct-bias") and fitted.student == NAME
    with pytest.raises(OptionError, match="student brecq,kd takes no pass adapt-bn"):
        create("brecq,kd", teacher.spec, {}, Runtime(), passes=["adapt-bn"])


def test_our_own_defaults_are_said_of_each_student(teacher):
    line = own_defaults_line(NAME, create(NAME, teacher.spec, {}, Runtime()), teacher.spec)
    assert line.startswith(f"{NAME}: genie-m.iterations=2000 is our default here, published is 20000")


def test_the_command_line_saves_and_shows_a_chain(tmp_path, capsys):
    common = ["quantize", "--teacher", "embedded:digits", "--images", "embedded:digits:train", "--count", 16]
    options = [word for key, value in short(NAME).items() for word in ("--set", f"{key}={value}")]
    done = call(capsys, *common, "--student", NAME, "--bits", "W4A4", *options, "--out", tmp_path)
    assert done.status == 0, done.err
    assert f"{NAME} W4A4" in done.out
    lines = zsq.inspect(tmp_path)
    assert lines[0].startswith(f"student {NAME} W4A4, first and last layer 8 bits")
    assert any("genie-m.iterations=3" in line and "lsq-kd.iterations=3" in line for line in lines)
    refused = call(capsys, *common, "--student", "genie-m,ptq", "--bits", "W4A4")
    assert refused.status == 2 and refused.err.startswith("zsq: ") and len(refused.err.splitlines()) == 1


def test_a_finished_fit_of_a_chain_is_not_repeated(teacher, pixels):
    shown = ImageSet(pixels, torch.zeros(32, dtype=torch.int64), "toys")
    specs = [StudentSpec(name, Bits(4, 4), short(name)) for name in (NAME, "lsq-kd")]
    students = resolve_students(specs, teacher.spec, Runtime())
    protocol = Protocol(teacher, shown, [shown], students, 1, Runtime())
    reference = score_teacher(teacher, shown, Runtime())

    def fits(done):
        made = []
        records = fit_and_score(
            protocol, {"real": [pixels]}, reference, done=done, on_run=lambda record, _: made.append(record)
        )
        return records, [record["student"] for record in made]

    records, made = fits([])
    assert made == [NAME, "lsq-kd"] and records[0]["options"]["genie-m.iterations"] == 3
    assert fits(json.loads(json.dumps(records)))[1] == []
    # A record from before an option counts as its default.
    first = records[0]
    old = {**first, "options": {key: v for key, v in first["options"].items() if key != "lsq-kd.momentum"}}
    assert fits([old, records[1]])[1] == []
    assert fits([{**first, "student": "gone,lsq-kd"}, records[1]])[1] == [NAME]


def test_options_of_a_chain_beside_its_students_in_a_gap():
    """Named STUDENT.KEY as every student's, where the KEY of a chain is itself student.option."""
    given = {f"{NAME}.genie-m.iterations": 5, "lsq-kd.iterations": 7}
    asked = {"teacher": "t", "shards": ("s",), "real": "r", "eval": "e", "bits": ("W4A4",), "set": given}
    chain, alone = workflow._gap_students(GapConfig(**asked, students=(NAME, "lsq-kd")))
    assert chain.options == {"genie-m.iterations": 5} and alone.options == {"iterations": 7}


def test_a_recipe_names_a_chain(teacher, tmp_path):
    (tmp_path / "chain.toml").write_text(
        f"""
        title = "A chain"
        real = "embedded:digits:train"
        eval = "embedded:digits:test"
        teacher = {{ name = "embedded:digits" }}
        generate = {{ count = 16 }}
        sources = [{{ method = "noise" }}]
        [[students]]
        name = "{NAME}"
        bits = ["W4A4", "W2A4"]
        set = {{ "genie-m.iterations" = 7, lsq-kd.iterations = 5 }}
        """
    )
    recipe = load_recipe(str(tmp_path / "chain.toml")).students[0]
    specs = [StudentSpec(recipe.name, Bits.parse(bits), recipe.set) for bits in recipe.bits]
    found = resolve_students(specs, teacher.spec, Runtime())
    assert [each.name for each in found] == [f"{NAME} W4A4", f"{NAME} W2A4"]
    options = found[0].spec.options
    assert (options["genie-m.iterations"], options["lsq-kd.iterations"]) == (7, 5)
