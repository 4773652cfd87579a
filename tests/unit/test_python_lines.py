"""Every name of zsq that a sentence of a page gives is there, and takes the arguments that it is given.

Whole scripts are run: tests/consumers/test_docs.py.
"""

import ast
import inspect
import re
from pkgutil import resolve_name

import pytest
from commands import REPOSITORY
from test_command_lines import BLOCK, PAGES

IN_FILES = {"zsq.outputs"}  # a key of an ONNX file
REST = Ellipsis  # `...` in a call: what else it needs


def expressions_of(page):
    """Python in the sentences of a page."""
    text = BLOCK.sub("", (REPOSITORY / page).read_text(encoding="utf-8"))
    for span in re.findall(r"`(zsq\.[^`]+)`", text):
        yield ast.parse(" ".join(span.split()), mode="eval").body


def names_in(expression):
    """The dotted names that begin with zsq, without the parts of others."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"zsq(\.\w+)+", ast.unparse(node)):
            yield ast.unparse(node)


@pytest.mark.parametrize("page", PAGES)
def test_names_and_arguments(page):
    for expression in expressions_of(page):
        names = set(names_in(expression)) - IN_FILES
        for name in names:
            resolve_name(name)
        for call in (node for node in ast.walk(expression) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) not in names:
                continue
            signature = inspect.signature(resolve_name(ast.unparse(call.func)))
            keywords = [keyword.arg for keyword in call.keywords]
            values = [getattr(value, "value", None) for value in call.args]
            bind = signature.bind_partial if REST in values else signature.bind
            bind(*(value for value in values if value is not REST), **dict.fromkeys(keywords))
