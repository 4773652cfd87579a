"""A recipe that runs in seconds: its text, and how often it fits."""

from zsq.recipefile import load_recipe

RECIPE = """
title = "Tiny"
real = "embedded:digits:train"
eval = "embedded:digits:val"
seeds = 1
[teacher]
name = "embedded:digits"
[generate]
count = 8
shard_sets = 2
shard_size = 4
seed = 7
iterations = 2
[[sources]]
method = "zeroq"
batch = 2
set = { learning_rate = 0.25 }
[[sources]]
method = "noise"
[[students]]
name = "ptq"
bits = ["W4A4"]
first_last = 8
set = { observer = "minmax", weight_observer = "minmax" }
[runtime]
threads = 1
compile = "off"
"""


NUM_FITS = 2 * 3  # sets x (real, zeroq, noise)


def load(tmp_path, text=RECIPE):
    (tmp_path / "tiny.toml").write_text(text)
    return load_recipe(str(tmp_path / "tiny.toml"))
