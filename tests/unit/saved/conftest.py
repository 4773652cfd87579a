"""A saved student, and a copy of it for each test that changes it."""

import shutil

import pytest
from tiny_students import fit

import zsq


@pytest.fixture(scope="module")
def original(digits, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    zsq.save_student(fit("ptq", digits, images[:8]), digits, folder)
    return folder


@pytest.fixture
def saved(original, tmp_path):
    return shutil.copytree(original, tmp_path / "saved")
