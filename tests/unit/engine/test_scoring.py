"""Scores of finished images agree with the engine's own, whatever the chunk."""

import torch

from zsq.core.runtime import Runtime
from zsq.engine import scoring
from zsq.engine.scoring import Scorer
from zsq.engine.statistics import TappedTeacher, image_distances


def test_scorer_agrees_with_the_engine(tiny_teacher):
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator())
    standard = tiny_teacher.spec.pixels_to_standard(pixels)
    logits, distances = Scorer(tiny_teacher, Runtime()).score(pixels)
    tapped_logits, layers = TappedTeacher(tiny_teacher)(standard)
    torch.testing.assert_close(logits, tapped_logits)
    torch.testing.assert_close(logits, tiny_teacher.network(standard))
    torch.testing.assert_close(distances, image_distances(layers))


def test_scores_do_not_depend_on_the_chunk(tiny_teacher, monkeypatch):
    pixels = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator())
    whole = Scorer(tiny_teacher, Runtime()).score(pixels)
    monkeypatch.setattr(scoring, "SCORE_BATCH", 3)
    for ours, theirs in zip(Scorer(tiny_teacher, Runtime()).score(pixels), whole, strict=True):
        torch.testing.assert_close(ours, theirs)
