"""What starts fast stays fast, and imports go one way."""

import ast
import resource
import subprocess
from inspect import signature
from pathlib import Path

import pytest
from commands import PYTHON, environment, run_python

HEAVY = ("torch", "numpy", "h5py", "sklearn", "scipy", "kornia", "matplotlib", "torchvision", "accelerate")


LOADED = f"""
import sys
{{statement}}
print(*[name for name in {HEAVY!r} if name in sys.modules])
"""


@pytest.mark.parametrize(
    "statement", ["import zsq", "import zsq.cli", "import zsq; dir(zsq); zsq.__version__"]
)
def test_import_loads_nothing_heavy(statement):
    assert run_python(LOADED.format(statement=statement)).split() == []


def test_import_opens_no_file_outside_of_python():
    """No data set, no recipe, no weights: only modules and what Python keeps beside them.

    Pydantic looks for plugins in the entry points of installed packages, editable ones too.
    """
    code = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import zsq, zsq.cli
library = f"python{sys.version_info[0]}{sys.version_info[1]}.zip"
python = (".py", ".pyc", ".so", library, "-info/entry_points.txt")
print(*[path for path in opened if not path.endswith(python)], sep="\\n")
"""
    assert [line for line in run_python(code).split("\n") if line and not line.isdigit()] == []


def test_help_loads_nothing_heavy():
    code = """
import sys
sys.argv = ["zsq", "generate", "--help"]
from zsq.cli import main
try:
    main()
except SystemExit as leaving:
    assert not leaving.code
"""
    out = run_python(LOADED.format(statement=code)).splitlines()
    assert "--method" in "".join(out)
    assert out[-1] == ""


def test_help_takes_less_than_a_second():
    """Of processor time: other work on the machine makes no difference."""

    def seconds():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        before = used.ru_utime + used.ru_stime
        command = [PYTHON, "-m", "zsq", "--help"]
        subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=60)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime - before

    assert min(seconds() for _ in range(3)) < 1


def test_every_public_name_can_be_had():
    import zsq

    for name in zsq.__all__:
        assert getattr(zsq, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        zsq.nothing  # noqa: B018


def test_type_checkers_are_told_of_the_same_names():
    import zsq

    imported = {
        alias.asname: node.module
        for node in ast.walk(ast.parse(Path(zsq.__file__).read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert imported == zsq._HOMES
    assert set(zsq.__all__) <= set(dir(zsq))


def test_every_public_path_can_be_text():
    import zsq

    signatures = (signature(getattr(zsq, name)) for name in zsq.__all__ if name != "__version__")
    annotations = [str(p.annotation) for each in signatures for p in each.parameters.values()]
    paths = [text.split(" | ") for text in annotations if "Path" in text.split(" | ")]
    assert len(paths) > 10 and all("str" in parts for parts in paths)
