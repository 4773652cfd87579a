"""The method and the student of docs/extending.md, installed as somebody else's package, work as it says."""

import re

import pytest
from commands import PYTHON, REPOSITORY, environment, run_python

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
METHOD, STUDENT, USE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What `pip install` leaves of the package: its module, and its metadata with the entry point."""
    site = tmp_path_factory.mktemp("site")
    (entry,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (site / "mymethod.py").write_text(METHOD, encoding="utf-8")
    (site / "mystudent.py").write_text(STUDENT, encoding="utf-8")
    info = site / "mymethod-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mymethod\nVersion: 1.0\n")
    section = re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", entry).replace('"', "")
    (info / "entry_points.txt").write_text(section)
    return site


def path_of(site):
    return f"{site}:{REPOSITORY}"


# Command lines one after the other, in one process.
RUN = """
import shlex, sys
from zsq.cli import main
for line in sys.argv[1:]:
    sys.argv = ["zsq", *shlex.split(line)]
    try:
        main()
    except SystemExit as leaving:
        if leaving.code:
            raise
"""


@pytest.fixture(scope="module")
def used(site, tmp_path_factory):
    """The folder of a run of the method, and what the command line and then the page's script print."""
    out = tmp_path_factory.mktemp("used") / "run"
    teacher = "--teacher embedded:digits --method nudge --count 4 --iterations 3"
    lines = (f"generate {teacher} --set learning_rate=0.2 --out {out}", f"verify {out}")
    return out, run_python(RUN + USE, "list methods", *lines, PYTHONPATH=path_of(site))


def test_it_is_listed_and_generates(used):
    out, printed = used
    assert "nudge" in printed and "a few steps towards the BN statistics" in printed
    assert '"nudge"' in (out / "run.json").read_text()


def test_a_name_that_is_taken_is_refused(site, tmp_path):
    import subprocess

    clash = tmp_path / "clash-1.0.dist-info"
    clash.mkdir()
    (clash / "METADATA").write_text("Metadata-Version: 2.1\nName: clash\nVersion: 1.0\n")
    (clash / "entry_points.txt").write_text("[zsq.generators]\nzeroq = mymethod:Nudge\n")
    done = subprocess.run(
        [PYTHON, "-c", RUN, "list methods"],
        env=environment(PYTHONPATH=f"{tmp_path}:{path_of(site)}"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "plug-in 'mymethod:Nudge' names its method 'zeroq', which exists already" in done.stderr


def test_the_student_is_fitted_and_scored(used):
    assert float(used[1].splitlines()[-1]) > 98


@pytest.mark.parametrize("code", [METHOD, STUDENT])
def test_each_needs_less_than_35_lines_of_code(code):
    assert len(code.splitlines()) < 35
