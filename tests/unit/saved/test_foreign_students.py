"""Files of students that are damaged or that somebody else made: one line, nothing run, little memory."""

import hashlib
import json
import shutil

import pytest
import torch
from forged_students import complaint, forge
from tiny_students import fit, images_of, smallest_teacher

import zsq


@pytest.mark.parametrize("name", ["student.safetensors", "student.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "bit", "folder"])
def test_damaged_files(saved, name, damage):
    path = saved / name
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        flipped = data[:200] + bytes([data[200] ^ 128]) + data[201:]
        path.write_bytes({"empty": b"", "truncated": data[:-9], "bit": flipped}[damage])
    assert name.rpartition(".")[2] in complaint(saved)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "null", "[" * 100_000, '{"format": "zsq student"}', "\0", "1e999"]
)
def test_json_of_something_else(saved, text):
    (saved / "student.json").write_text(text)
    assert "expected a student's JSON" in complaint(saved)


def test_a_huge_json_is_not_read(saved, monkeypatch):
    monkeypatch.setattr("zsq.saved.saving.MAX_RECORD_BYTES", 100)
    assert "student.json: larger than the 100 bytes" in complaint(saved)


def node(record, op):
    return next(each for each in record["graph"]["nodes"] if each["op"] == op)


def grid(record, kind):
    return next(each for each in record["grids"] if each["kind"] == kind)


RECORDS = {
    "unknown key": lambda r: r.update(pickle="x"),
    "other format": lambda r: r.update(format="other"),
    "other version": lambda r: r.update(format_version=3),
    "task": lambda r: r["task"].update(name="other tasks"),
    "field of a task": lambda r: r["task"]["fields"].update(border=1),
    "value of a field": lambda r: r.update(task={"name": "image", "fields": {"border": "wide"}}),
    "function of a task": lambda r: r.update(task={"name": "detect", "fields": {"decode": "os.system"}}),
    "bits": lambda r: r.update(bits="W9A4"),
    "levels": lambda r: grid(r, "weight").update(hi=4000),
    "levels beyond bits": lambda r: grid(r, "weight").update(bits=2),
    "levels narrowed": lambda r: grid(r, "weight").update(lo=0, hi=1, bits=2),
    "signed container": lambda r: grid(r, "weight").update(lo=-128, hi=127),
    "steps": lambda r: grid(r, "weight").update(num_scales=3),
    "name": lambda r: grid(r, "weight").update(name="linear.weight"),
    "other form": lambda r: grid(r, "weight").update(form="interval"),
    "grid left out": lambda r: r["grids"].pop(),
    "grid elsewhere": lambda r: grid(r, "activation").update(path="x.input_quantizer", name="x.input"),
    "grid at no place": lambda r: grid(r, "activation").update(path="conv1.weight", name="conv1.weight"),
    "activation in a weight's place": lambda r: grid(r, "weight").update(kind="activation"),
    "weight in an input's place": lambda r: grid(r, "activation").update(kind="weight"),
    "outputs": lambda r: r["teacher"].update(num_outputs=11),
    "image": lambda r: r["image"].update(channels=3),
    "image shape": lambda r: r["image"].update(channels=2, mean=[0, 0], std=[1, 1]),
    "channels": lambda r: r["graph"]["modules"]["conv1"]["arguments"].update(out_channels=17),
    "huge channels": lambda r: r["graph"]["modules"]["conv1"]["arguments"].update(out_channels=10**12),
    "argument": lambda r: r["graph"]["modules"]["conv1"]["arguments"].update(device="cuda"),
    "module": lambda r: r["graph"]["modules"]["conv1"].update(kind="Module"),
    "module left out": lambda r: r["graph"]["modules"].pop("conv1"),
    "value": lambda r: r["graph"]["modules"]["conv1"]["arguments"].update(stride={"code": [1]}),
    "two values": lambda r: r["graph"]["modules"]["conv1"]["arguments"].update(stride={"tuple": [], "a": 1}),
    "layout": lambda r: r["channels_last"].append("nothing"),
    "method": lambda r: node(r, "call_function").update(op="call_method", target="__reduce__"),
    "get_attr": lambda r: node(r, "call_function").update(op="get_attr", target="forward"),
    "unknown node": lambda r: node(r, "output").update(args=[{"node": "nowhere"}]),
    "no output": lambda r: r["graph"]["nodes"].pop(),
    "no nodes": lambda r: r["graph"].update(nodes=[]),
    "injected name": lambda r: node(r, "placeholder").update(target="x=print(1)"),
    "injected keyword": lambda r: node(r, "call_function").update(kwargs={"a=print(1), b": 1}),
    "injected name of dashes": lambda r: node(r, "placeholder").update(target="x-1"),
    "injected path": lambda r: node(r, "call_module").update(target='a"+print(1)+"'),
    "keyword as argument": lambda r: node(r, "placeholder").update(target="import"),
}  # fmt: skip


@pytest.mark.parametrize("case", RECORDS)
def test_a_foreign_record_is_one_line(saved, case, capsys):
    forge(saved, RECORDS[case])
    assert complaint(saved).startswith(f"student {saved}/student.json: ")
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def originals():
    return {}


@pytest.fixture
def saved_as(originals, tmp_path, tmp_path_factory):
    """A copy of a saved student of this name, fitted once for all tests."""

    def saved_as(name):
        if name not in originals:
            originals[name] = tmp_path_factory.mktemp(name)
            teacher = smallest_teacher(name)
            zsq.save_student(fit(name, teacher, images_of(teacher, 4)), teacher, originals[name])
        return shutil.copytree(originals[name], tmp_path / name)

    return saved_as


def replace(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


@pytest.mark.parametrize(
    "case, changes",
    [
        ("ends the wrong way round", {"low": lambda end: end + 100}),
        ("no scale", {"scale": lambda scale: scale * torch.nan}),
        ("a row of ends", {"low": lambda end: end[None]}),
    ],
)
def test_foreign_intervals_are_one_line(saved_as, case, changes):
    folder = saved_as("qfd")

    def edit(tensors):
        for part, change in changes.items():
            tensors[f"0.0.weight_quantizer.{part}"] = change(tensors[f"0.0.weight_quantizer.{part}"])

    forge(folder, edit_tensors=edit)
    assert "'0.0.weight_quantizer' has " in complaint(folder)


@pytest.mark.parametrize(
    "change", [lambda end: end * 0, lambda end: -end, lambda end: end[None], lambda end: end * torch.inf]
)
def test_foreign_logarithms_are_one_line(saved_as, change):
    folder = saved_as("repq")
    path = "blocks.0.attn.matmul1.left_quantizer"
    forge(folder, edit_tensors=lambda tensors: replace(f"{path}.largest", change)(tensors))
    assert f"'{path}' has " in complaint(folder)


def test_no_weight_has_a_logarithmic_grid(saved):
    forge(saved, lambda record: grid(record, "weight").update(form="log-sqrt2"))
    assert "a log-sqrt2 grid, which no weight has" in complaint(saved)


TENSORS = {
    "missing": lambda t: t.pop("conv1.weight"),
    "too many": lambda t: t.update(extra=torch.zeros(1)),
    "levels of 4 bits": replace("block1.conv1.weight", lambda w: w + 1),
    "float weight": replace("conv1.weight", torch.Tensor.float),
    "shape": replace("conv1.weight", lambda w: w[:, :, :2].contiguous()),
    "rows": replace("conv1.weight", lambda w: w[:3].contiguous()),
    "NaN": replace("conv1.bias", lambda b: b * torch.nan),
    "zero step": replace("conv1.weight_quantizer.step", torch.zeros_like),
    "negative step": replace("conv1.weight_quantizer.step", torch.neg),
    "infinite step": replace("conv1.weight_quantizer.step", lambda s: s * torch.inf),
    "shape of steps": replace("conv1.weight_quantizer.step", lambda s: s.flatten()),
    "double step": replace("conv1.weight_quantizer.step", torch.Tensor.double),
    "zero point": replace("conv1.weight_quantizer.zero_point", lambda z: z + 0.5),
    "far zero point": replace("conv1.weight_quantizer.zero_point", lambda z: z + 1000),
    "empty": lambda t: t.clear(),
}


@pytest.mark.parametrize("case", TENSORS)
def test_foreign_tensors_are_one_line(saved, case):
    forge(saved, edit_tensors=TENSORS[case])
    assert "its parts make no network: " in complaint(saved)


def test_no_pickle_is_read(saved, tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, saved / "student.safetensors")
    record = json.loads((saved / "student.json").read_text())
    record["tensors_sha256"] = hashlib.sha256((saved / "student.safetensors").read_bytes()).hexdigest()
    (saved / "student.json").write_text(json.dumps(record))
    assert "its parts make no network" in complaint(saved)
