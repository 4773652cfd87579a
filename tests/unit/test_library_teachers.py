"""Networks of timm and of Hugging Face through the commands, and `--offline` for all that download."""

import pytest
import torch
from commands import call

import zsq

LIBRARIES = ("resnet18", "timm:resnet18.a1_in1k", "hf:someone/net")


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def timm_network(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "net.pt")
    return ["--teacher", "timm:resnet10t", "--weights", tmp_path / "net.pt"]


def hf_network(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
        patch_size=8, num_labels=5,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    return ["--teacher", f"hf:{tmp_path / 'vit'}"]


def generated(capsys, teacher):
    options = ["--offline", "--method", "noise", "--count", 2, "--out", "run"]
    made = call(capsys, "generate", *teacher, *options)
    assert made.status == 0, made.err
    return made


@pytest.mark.parametrize("network", [timm_network, hf_network])
def test_images_a_student_and_its_files(tmp_path, capsys, network):
    teacher = network(tmp_path)
    generated(capsys, teacher)
    assert zsq.ShardDataset("run", with_logits=True)[0]["logits"].ndim == 1
    weights = teacher[3] if len(teacher) > 2 else None
    result = zsq.quantize(teacher[1], "run", "ptq", "W8A8", weights=weights, offline=True, out="student")
    loaded, student = zsq.load_teacher(teacher[1], weights), zsq.load_student("student")
    images = torch.randn(2, *loaded.spec.shape)
    with torch.no_grad():
        exact, close, again = (
            each(images) for each in (loaded.network, result.fitted.network, student.network)
        )
    assert (exact - close).abs().mean() < 0.1 * exact.std()
    assert torch.equal(close, again) and not torch.equal(exact, close)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE"])
def test_offline_refuses_what_is_not_there(name, how, capsys, monkeypatch):
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    options = ["--offline"]
    if how != "--offline":
        monkeypatch.setenv(how, "1")
        options = []
    complaint = call(capsys, "generate", "--teacher", name, "--method", "dgh", *options).complaint()
    assert "are not on this machine, and it is offline" in complaint
    assert "https://" in complaint


@pytest.mark.parametrize(
    "command",
    [
        ("quantize", "--images", "x", "--student", "ptq", "--bits", "W8A8"),
        (
            "gap",
            "--shards",
            "x",
            "--real",
            "x",
            "--eval",
            "x",
            "--student",
            "ptq",
            "--bits",
            "W8A8",
            "--out",
            "y",
        ),
        ("audit", "--shards", "x", "--train", "x", "--holdout", "x", "--out", "y"),
        ("inspect",),
    ],
    ids=lambda command: command[0],
)
def test_offline_of_other_commands(command, capsys):
    outcome = call(capsys, *command, "--teacher", "resnet18", "--offline")
    assert (outcome.status, "it is offline" in outcome.complaint()) == (2, True)


def test_offline_of_a_recipe(tmp_path, capsys):
    (tmp_path / "r.toml").write_text(
        'title = "t"\nreal = "embedded:digits"\neval = "embedded:digits"\nteacher = { name = "resnet18" }\n'
        'generate = { count = 4 }\nsources = [{ method = "noise" }]\n'
        'students = [{ name = "ptq", bits = "W8A8" }]\n'
    )
    outcome = call(capsys, "run", "r.toml", "--offline")
    assert "it is offline" in outcome.complaint()


def test_a_recipe_finds_a_folder_beside_it(tmp_path):
    from zsq.recipefile import Recipe, RecipeTeacher

    (tmp_path / "recipes" / "vit").mkdir(parents=True)
    recipe = Recipe.model_construct(
        folder=tmp_path / "recipes", title="t", teacher=RecipeTeacher(name="hf:vit")
    )
    assert recipe.located_teacher == f"hf:{tmp_path / 'recipes' / 'vit'}"


def test_lists(capsys):
    timm = pytest.importorskip("timm")
    teachers = call(capsys, "list", "teachers").out
    assert "timm:NAME" in teachers and "hf:NAME" in teachers and "timm:resnet18" not in teachers
    names = call(capsys, "list", "timm").out.split()
    assert names == [f"timm:{name}" for name in timm.list_models()]
