"""Students that somebody else made, and what loading one says."""

import hashlib
import json

import pytest
from safetensors.torch import load_file, save_file

import zsq
from zsq.core.errors import StudentFileError


def forge(folder, edit_record=None, edit_tensors=None):
    """A student by somebody who keeps the hash right."""
    tensors = load_file(folder / "student.safetensors")
    if edit_tensors:
        edit_tensors(tensors)
    save_file(tensors, folder / "student.safetensors")
    record = json.loads((folder / "student.json").read_text())
    record["tensors_sha256"] = hashlib.sha256((folder / "student.safetensors").read_bytes()).hexdigest()
    if edit_record:
        edit_record(record)
    (folder / "student.json").write_text(json.dumps(record))


def complaint(folder):
    with pytest.raises(StudentFileError) as caught:
        zsq.load_student(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)
