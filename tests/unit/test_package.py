"""What gets installed: the wheel from its own content, and this editable installation."""

import shutil
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from commands import PYTHON, run_python

REPOSITORY = Path(__file__).parents[2]
PACKAGED = ("zsq", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the repository."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGED:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    pip(
        *("wheel", "--no-deps", "--no-index", "--no-build-isolation"),
        *("--wheel-dir", source / "dist", source),
    )
    (built,) = (source / "dist").glob("zsq-*.whl")
    return built


def pip(*arguments):
    command = [PYTHON, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheel_holds_every_module_and_data_file_and_nothing_else(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    modules = {f"zsq/{path.relative_to(REPOSITORY / 'zsq')}" for path in (REPOSITORY / "zsq").rglob("*.py")}
    for folder, pattern in (("generators", "*.py"), ("recipes", "*")):
        files = (path for path in (REPOSITORY / folder).glob(pattern) if path.is_file())
        modules |= {f"zsq/{folder}/{path.name}" for path in files}
    data = {"zsq/teacher/digits.safetensors", "zsq/report/page.html.j2"}
    data |= {"zsq/teacher/digits-detector.safetensors", "zsq/images/imagenet_wordnet_ids.txt"}
    data |= {"zsq/teacher/digits-vit.safetensors"}
    assert set(names) == modules | data
    assert {"zsq/generators/dsg.py", "zsq/recipes/digits.toml"} <= set(names)


def test_wheel_is_small_and_carries_its_licence(wheel):
    assert wheel.stat().st_size < 1_300_000
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_installed_wheel_works_elsewhere(wheel, tmp_path):
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", tmp_path / "site", wheel)
    code = """
import sys
import zsq, zsq.generators, zsq.recipes
print(zsq.__file__, zsq.generators.__file__, zsq.recipes.__file__)
from zsq.recipefile import load_recipe, recipe_titles
assert "digits" in recipe_titles() and load_recipe("digits").title
from zsq.teacher import load_teacher
assert load_teacher("embedded:digits").num_classes == 10
sys.argv = ["zsq", "list", "methods"]
from zsq.cli import main
main()
"""
    out = run_python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).splitlines()
    from zsq.generators import METHODS

    assert all(path.startswith(str(tmp_path / "site/zsq")) for path in out[0].split())
    assert [line for line in out[1:] if not line.startswith(" ")] == list(METHODS)
    assert (tmp_path / "site/bin/zsq").is_file()


def test_editable_installation_is_this_repository():
    import zsq
    import zsq.generators
    import zsq.recipes

    assert Path(zsq.__file__).parent == REPOSITORY / "zsq"
    assert Path(zsq.generators.__file__).resolve().parent == REPOSITORY / "generators"
    assert Path(zsq.recipes.__file__).resolve().parent == REPOSITORY / "recipes"


def test_version_is_the_installed_one():
    import zsq

    assert metadata.version("zsq") == zsq.__version__


def test_lower_bounds_and_no_upper_pins():
    required = [line for line in metadata.requires("zsq") if "extra ==" not in line]
    assert all(">=" in line for line in required)
    assert not any("<" in line or "==" in line for line in required)
