"""A name that does not exist: the line says the nearest names, and all of them or the command that does."""

import pytest

import zsq
from zsq.catalogue import catalogue
from zsq.core.errors import UnknownNameError, UsageError
from zsq.core.wording import did_you_mean
from zsq.exports.formats import FORMATS
from zsq.exports.tools import TOOLS
from zsq.generators import available_methods, method_class
from zsq.passes import PASSES, split_pass
from zsq.recipefile import load_recipe, recipe_paths
from zsq.students import STUDENTS, student_class
from zsq.students.mixed import inner_class
from zsq.teacher import builtin_teachers


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return zsq.generate("embedded:digits", "noise", count=2, out=tmp_path_factory.mktemp("runs") / "run")


CASES = {
    "method": (available_methods, method_class),
    "student": (lambda: STUDENTS, student_class),
    "student in mixed": (lambda: STUDENTS, inner_class),
    "pass": (lambda: PASSES, split_pass),
    "recipe": (recipe_paths, load_recipe),
    "teacher": (lambda: [name for name, _ in builtin_teachers()], zsq.load_teacher),
}


def check_line(line, name, known, command):
    assert f"'{name}'" in line.partition("did you mean")[2]
    assert f"`{command}`" in line or all(each in line for each in known)
    assert len(line) < 300


@pytest.mark.parametrize("what", CASES)
def test_the_nearest_name_is_said_and_where_all_are(what):
    known, look_up = CASES[what]
    kind = what.partition(" ")[0]
    for name in [each for each in known() if not each.endswith(":NAME")][:10]:
        with pytest.raises(UnknownNameError, match=f"unknown {kind} '{name}x'") as caught:
            look_up(f"{name}x")
        check_line(str(caught.value), name, known(), f"zsq list {kind}{'e' * (kind == 'pass')}s")


@pytest.mark.parametrize(("option", "known"), [("to", FORMATS), ("tool", TOOLS)], ids=["format", "tool"])
def test_formats_and_tools_of_an_export(option, known, run, tmp_path):
    for name in known:
        with pytest.raises(UnknownNameError) as caught:
            zsq.export(run, out=tmp_path / "out", **{"to": None, option: f"{name}x"})
        check_line(str(caught.value), name, known, "zsq export --help")


def test_what_is_listed():
    with pytest.raises(UsageError, match="did you mean 'methods'"):
        catalogue("method")


def test_no_more_than_three_names_are_said():
    assert did_you_mean("ab1", ["ab2"]) == "did you mean 'ab2'?"
    assert did_you_mean("ab1", ["ab2", "ab3"]) == "did you mean 'ab3' or 'ab2'?"
    assert did_you_mean("ab1", ["ab2", "ab3", "ab4", "ab5"]) == "did you mean 'ab5', 'ab4' or 'ab3'?"
    assert did_you_mean("ab1", ["zzz"]) == ""
