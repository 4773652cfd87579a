"""The floors that `make test-lowest` installs are those of pyproject.toml."""

import tomllib
from importlib import metadata, util

import pytest
from commands import REPOSITORY

SPEC = util.spec_from_file_location("floors", REPOSITORY / ".ci" / "floors.py")
floors = util.module_from_spec(SPEC)
SPEC.loader.exec_module(floors)


def test_every_dependency_and_the_extras_asked_for():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    webdataset = project["optional-dependencies"]["webdataset"]
    assert floors.floors(["webdataset"]) == [
        line.replace(">=", "==") for line in (*project["dependencies"], *webdataset)
    ]
    assert all(line.count("==") == 1 for line in floors.floors(project["optional-dependencies"].keys()))


@pytest.mark.parametrize("line", ["torch", "torch>=2.10,<3", "torch==2.10", "torch>2.10"])
def test_a_requirement_without_one_floor_is_refused(tmp_path, monkeypatch, line):
    path = tmp_path / "pyproject.toml"
    path.write_text(f'[project]\ndependencies = ["{line}"]\noptional-dependencies = {{}}\n')
    monkeypatch.setattr(floors, "PYPROJECT", path)
    with pytest.raises(ValueError, match="expected name>=version"):
        floors.floors([])


def test_what_is_installed_is_not_below_them():
    def release(version):
        return [int(part) for part in version.split("+")[0].split(".") if part.isdigit()]

    for line in floors.floors(["dev"]):
        name, least = line.split("==")
        assert release(metadata.version(name)) >= release(least), name
