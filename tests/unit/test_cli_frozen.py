"""Commands and options are a promise: this list changes only with a decision."""

import typer

from zsq.cli import app

RUNTIME = ["--precision", "--compile", "--threads", "--device"]

COMMANDS = {
    "generate": [
        *("--teacher", "--method", "--weights", "--count", "--batch", "--shard-size", "--seed", "--out"),
        *("--iterations", "--effort", "--real", "--set", "--resume", "--sealed", "--offline", *RUNTIME),
    ],
    "quantize": [
        *(
            "--teacher",
            "--images",
            "--student",
            "--bits",
            "--method",
            "--effort",
            "--weights",
            "--first-last",
            "--widths",
            "--passes",
            "--fit",
            "--class-names",
            "--seed",
            "--eval",
        ),
        *("--count", "--out", "--onnx", "--pt2", "--set", "--offline", *RUNTIME),
    ],
    "gap": [
        *("--teacher", "--shards", "--real", "--eval", "--student", "--bits", "--out", "--weights"),
        *("--seeds", "--count", "--first-last", "--passes", "--set", "--show-real", "--resume", *RUNTIME),
        *("--fit", "--class-names", "--offline", "--jobs"),
    ],
    "run": [
        *("recipe", "--out", "--resume", "--budget-hours", "--jobs", "--fit", "--class-names", "--offline"),
        *RUNTIME,
    ],
    "list": ["what", "--json", "--teacher", "--offline"],
    "inspect": [
        *("folder", "--teacher", "--weights", "--images", "--count", "--layers", "--html"),
        *("--fit", "--class-names", "--offline"),
    ],
    "verify": ["folder", "--against", "--teacher", "--weights", "--tolerance", "--offline"],
    "export": ["folder", "--to", "--for", "--each", "--out", "--layout", "--range", "--card"],
    "audit": [
        *("--teacher", "--shards", "--train", "--holdout", "--out", "--weights", "--threads", "--device"),
        *("--fit", "--class-names", "--offline"),
    ],
    "import": ["source", "--out", "--name", "--mean", "--std", "--layout"],
}

DEFAULTS = {
    "generate": {
        **{"count": None, "shard_size": 256, "seed": 0, "batch": None, "iterations": None},
        **{"effort": None, "out": None},
        **{"precision": "auto", "compile": "auto", "threads": None, "device": "auto", "resume": False},
    },
    "quantize": {
        "seed": 0,
        "first_last": None,
        "eval": None,
        "count": None,
        "precision": "auto",
        "out": None,
    },
    "gap": {
        "seeds": 3,
        "count": None,
        "passes": None,
        "first_last": None,
        "fit": None,
        "class_names": None,
        "show_real": False,
        "resume": False,
    },
    "run": {"out": None, "resume": False, "budget_hours": None, "jobs": None},
    "verify": {"against": None, "teacher": None, "weights": None, "tolerance": 1e-3},
    "export": {"to": None, "for": None, "each": None, "layout": None, "range": None, "card": False},
    "audit": {"weights": None, "threads": None, "device": "auto"},
    "import": {"name": "imported", "mean": None, "std": None, "layout": None},
}

REQUIRED = {
    "generate": {"teacher"},
    "quantize": {"teacher", "bits"},
    "gap": {"teacher", "shards", "real", "eval", "student", "bits", "out"},
    "run": {"recipe"},
    "list": {"what"},
    "inspect": set(),
    "verify": {"folder"},
    "export": {"folder", "out"},
    "audit": {"teacher", "shards", "train", "holdout", "out"},
    "import": {"source", "out"},
}


def commands():
    return typer.main.get_command(app).commands


def names(command):
    """As typed: options by their flag, arguments by their name."""
    return [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]


def test_commands_and_options():
    assert {name: sorted(names(command)) for name, command in commands().items()} == {
        name: sorted(options) for name, options in COMMANDS.items()
    }


def test_options_of_all_commands():
    assert names(typer.main.get_command(app)) == ["--version"]


def test_required_options():
    required = {
        name: {parameter.name for parameter in command.params if parameter.required}
        for name, command in commands().items()
    }
    assert required == REQUIRED


def test_defaults():
    for name, wanted in DEFAULTS.items():
        found = {parameter.name.rstrip("_"): parameter.default for parameter in commands()[name].params}
        assert {key: found[key] for key in wanted} == wanted


def test_the_list_of_commands_cuts_no_sentence():
    assert not [name for name, command in commands().items() if command.get_short_help_str(66)[-3:] == "..."]


def test_every_command_and_option_is_explained():
    for command in commands().values():
        assert command.help
        assert all(parameter.help for parameter in command.params)
