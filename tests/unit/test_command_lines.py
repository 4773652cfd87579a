"""The program takes every command line on a page, and every file and recipe that a page names is there."""

import re
import shlex

import pytest
import typer
from commands import REPOSITORY
from toys import image_spec

from zsq import students
from zsq.cli import app
from zsq.cli.options import asked
from zsq.core.runtime import Runtime
from zsq.generators import method_class

PAGES = ["README.md", "CONTRIBUTING.md", "recipes/README.md"]
PAGES += [f"docs/{page.name}" for page in sorted(REPOSITORY.glob("docs/*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = typer.main.get_command(app).commands
LINE = re.compile(rf"^(?:\$ |.* -m )?zsq (?:{'|'.join(COMMANDS)})\b")
EXAMPLE = "nudge"  # the method that docs/extending.md writes
FILE = re.compile(r"`?\b((?:zsq|generators|recipes|benchmarks|tests)/[a-z0-9_./-]+\.(?:py|txt|toml))\b")
NAMED = re.compile(r"`([A-Z]+)` in `([\w/.]+)`")
RECIPE = re.compile(r"benchmarks/table\.py ([a-z][\w-]+)")


def lines_of(page):
    """Command lines of a page: what stands in blocks, and what stands in a sentence."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for language, block in BLOCK.findall(text):
        if language in ("", "bash"):
            yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    for span in re.findall(r"`([^`]+)`", BLOCK.sub("", text)):
        yield " ".join(span.split())


def check_names(command, values):
    """The method or the students, their options and passes are there."""
    options = values["set"]
    if command == "generate":
        if values["method"] not in (None, EXAMPLE):
            method_class(values["method"]).options_class.resolve("method", image_spec(), options)
        return
    names = (values["student"] or []) if command == "gap" else [values["student"] or "ptq"]
    for name in names:
        if command == "gap":
            options = {key.removeprefix(f"{name}."): value for key, value in options.items()}
        students.create(name, image_spec(), options, Runtime(), passes=values["passes"])


@pytest.mark.parametrize("page", PAGES)
def test_command_lines(page):
    for line in filter(LINE.search, lines_of(page)):
        command, *arguments = shlex.split(re.sub(r" #.*", "", line[line.index("zsq ") + 4 :]))
        arguments = [word.strip("[]") for word in arguments if word != "..."]
        # A line with a gap may lack what the command needs.
        gaps = bool(re.search(r"\.\.\.|\[", line)) or not line.startswith(("zsq", "$")) or len(arguments) < 3
        flags = {flag for parameter in COMMANDS[command].params for flag in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= flags | {"--help"}, line
        context = COMMANDS[command].make_context(command, arguments, resilient_parsing=gaps)
        if command in ("generate", "quantize", "gap"):
            check_names(command, asked(context))


@pytest.mark.parametrize("page", PAGES)
def test_files_and_recipes(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert not [file for file in FILE.findall(text) if not (REPOSITORY / file).is_file()]
    assert not [
        name for name in RECIPE.findall(text) if not (REPOSITORY / "recipes" / f"{name}.toml").is_file()
    ]
    for name, file in NAMED.findall(text):
        assert re.search(rf"^{name}\b", (REPOSITORY / file).read_text(), re.MULTILINE), name
