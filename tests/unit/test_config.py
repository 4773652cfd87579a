"""Recipes, overrides, variables and hashes."""

import hashlib
import json
import math
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError
from toys import image_spec

from zsq.config import (
    GenerateConfig,
    ImagesConfig,
    config_json,
    config_sha256,
    expand_variables,
    parse_set,
    validated,
)
from zsq.core.errors import OptionError, UnknownNameError
from zsq.generators import available_methods
from zsq.images.sources import NAMED, load_images
from zsq.recipefile import Recipe, RecipeTeacher, load_recipe, recipe_paths, recipe_titles
from zsq.students import STUDENTS

RECIPE = """
title = "Two sources"
real = "embedded:digits:train"
eval = "images/test.zip"
[teacher]
name = "embedded:digits"
[generate]
count = 16
[[sources]]
method = "dsg"
set = { epsilon = 0.8 }
[[students]]
name = "ptq"
bits = "W4A4"
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_by_its_path(recipe_file):
    recipe = load_recipe(str(recipe_file))
    assert recipe.title == "Two sources" and recipe.folder == recipe_file.parent
    assert recipe.students[0].bits == ("W4A4",) and recipe.sources[0].set == {"epsilon": 0.8}
    assert (recipe.generate.shard_sets, recipe.generate.seed, recipe.seeds) == (3, 0, 1)


@pytest.mark.parametrize("name", sorted(recipe_paths()))
def test_every_recipe_that_comes_with_zsq_is_valid(name):
    recipe = load_recipe(name)
    assert recipe.folder == Path() and recipe_titles()[name] == recipe.title
    for stage in (*recipe.sources, *recipe.students):
        assert stage.set is not None


def test_unknown_recipes_name_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        load_recipe("digit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("count = 16", "count = 0"), r"recipe two\.toml: generate\.count: .*greater than or equal to 1"),
        (("count = 16", "cuont = 16"), r"recipe two\.toml: generate\.(count|cuont)"),
        (("count = 16", "count = "), r"recipe .*two\.toml is not TOML"),
        (('title = "Two sources"', "folder_of_mine = 1"), r"recipe two\.toml: (title|folder_of_mine)"),
    ],
)
def test_wrong_recipes_are_one_line(recipe_file, change, message):
    recipe_file.write_text(RECIPE.replace(*change))
    with pytest.raises(OptionError, match=message) as caught:
        load_recipe(str(recipe_file))
    assert "\n" not in str(caught.value)


def test_missing_and_binary_recipes(tmp_path):
    with pytest.raises(OptionError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match="is not TOML"):
        load_recipe(str(tmp_path / "binary.toml"))


def teacher_in(recipe, name):
    return recipe.model_copy(update={"teacher": RecipeTeacher(name=name)}).located_teacher


def test_places_of_a_recipe(recipe_file, monkeypatch):
    monkeypatch.setenv("ZSQ_TEST_FOLDER", "/photos")
    recipe, folder = load_recipe(str(recipe_file)), recipe_file.parent
    for name in ("embedded:digits:train", "torchvision:CIFAR10:/root"):
        assert recipe.located_images(name) == name
    for ending in ("", ":train", ":train#labels=0-4"):
        wanted = f"torchvision:CIFAR10:{folder / 'data'}{ending}"
        assert recipe.located_images(f"torchvision:CIFAR10:data{ending}") == wanted
    assert recipe.located_images("images/test.zip") == str(folder / "images/test.zip")
    assert recipe.located_images("${ZSQ_TEST_FOLDER}/a.zip") == "/photos/a.zip"
    assert recipe.located_file("own.csv") == folder / "own.csv"
    for name in ("cifar10:resnet20", "timm:resnet18", "resnet18", "embedded:digits", "hf:someone/vit"):
        assert teacher_in(recipe, name) == name
    assert teacher_in(recipe, "file:card.toml") == f"file:{folder / 'card.toml'}"
    with pytest.raises(OptionError, match=r"recipe 'Two sources': \$\{ZSQ_TEST_NONE\} is not set"):
        recipe.located_images("${ZSQ_TEST_NONE}/a.zip")


def test_a_new_source_of_images_is_named_in_its_table_alone(recipe_file, monkeypatch):
    images = load_images("embedded:digits:test", limit=4)
    monkeypatch.setitem(NAMED, "mine", lambda source, reading: images)
    recipe = load_recipe(str(recipe_file)).model_copy(update={"real": "mine:here", "eval": "mine:there"})
    assert recipe.located_images(recipe.real) == "mine:here"
    assert recipe.missing() is None
    assert load_images("mine:here") is images


def test_variables_and_their_defaults(monkeypatch):
    monkeypatch.setenv("ZSQ_TEST_A", "one")
    monkeypatch.delenv("ZSQ_TEST_B", raising=False)
    assert expand_variables("${ZSQ_TEST_A}/${ZSQ_TEST_A:-x}/${ZSQ_TEST_B:-../b}", "here") == "one/one/../b"
    assert expand_variables("${ZSQ_TEST_B:-}$HOME", "here") == "$HOME"
    with pytest.raises(OptionError, match=r"here: .*ZSQ_TEST_B.* export ZSQ_TEST_B=FOLDER"):
        expand_variables("${ZSQ_TEST_B}", "here")


def test_overrides_are_json_where_they_parse():
    pairs = ["a=1", "b=true", "c=x y", "d=[0.5, 0.9]", "e=1e-3", "f=", "g=a=b", "h=null"]
    wanted = {"a": 1, "b": True, "c": "x y", "d": [0.5, 0.9], "e": 0.001, "f": "", "g": "a=b", "h": None}
    assert parse_set(pairs) == wanted
    for wrong in ("a", "=1"):
        with pytest.raises(OptionError, match="expected key=value"):
            parse_set([wrong])


def test_the_hash_is_of_the_content_not_of_the_order():
    first, second = {"b": 1, "a": {"y": [1, 2], "x": None}}, {"a": {"x": None, "y": [1, 2]}, "b": 1}
    assert config_sha256(first) == config_sha256(second)
    assert config_sha256(first) != config_sha256(first | {"b": 2})
    assert json.loads(config_json(first)) == first
    assert config_sha256(first) == hashlib.sha256(config_json(second).encode()).hexdigest()


def test_configurations_are_frozen_and_refuse_unknown_keys():
    config = validated(GenerateConfig, {"teacher": "t", "method": "dsg"}, "call")
    with pytest.raises(ValidationError):
        config.count = 3
    for wrong, key in (({"speed": 1}, "speed"), ({"count": 0}, "count"), ({"seed": 2**63}, "seed")):
        with pytest.raises(OptionError, match=f"call: {key}"):
            validated(GenerateConfig, {"teacher": "t", "method": "dsg"} | wrong, "call")
    with pytest.raises(OptionError, match="runtime: threads"):
        validated(GenerateConfig, {"teacher": "t", "method": "dsg", "runtime": {"threads": 0}}, "call")


def test_bits_may_be_one_or_several(recipe_file):
    values = load_recipe(str(recipe_file)).model_dump()
    values["students"] = ({"name": "ptq", "bits": ["W4A4", "W8A8"]},)
    assert validated(Recipe, values, "here").students[0].bits == ("W4A4", "W8A8")


def test_how_images_are_read_may_be_overridden(recipe_file):
    recipe = load_recipe(str(recipe_file)).model_copy(update={"fit": "stretch", "class_names": "names.txt"})
    assert recipe.images == ImagesConfig(fit="stretch", class_names=str(recipe_file.parent / "names.txt"))
    asked = recipe.reading_images(ImagesConfig(fit="crop"))
    assert (asked.images.fit, asked.class_names) == ("crop", "names.txt")
    asked = recipe.reading_images(ImagesConfig(class_names="here.txt"))
    assert Path(asked.images.class_names).resolve() == Path("here.txt").resolve()
    assert recipe.reading_images(ImagesConfig(class_names="by-order")).images.class_names == "by-order"


FLOATS = [
    (cls, key)
    for cls in (*available_methods().values(), *STUDENTS.values())
    for key, field in cls.options_class.model_fields.items()
    if float in (field.annotation, *get_args(field.annotation))
]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "Infinity", "nan"])
def test_no_option_of_a_method_or_student_is_other_than_finite(value):
    assert len(FLOATS) > 100
    for cls, key in FLOATS:
        with pytest.raises(OptionError, match=f"{key}: Input should be"):
            cls.options_class.resolve("toy", image_spec(), {key: value})


@pytest.mark.parametrize("text", ["inf", "-inf", "nan"])
def test_numbers_of_a_recipe_are_finite(text, tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(RECIPE.replace('name = "embedded:digits"', f'name = "x"\nexpected_accuracy = {text}'))
    with pytest.raises(OptionError, match="expected_accuracy: Input should be a finite number"):
        load_recipe(str(path))
