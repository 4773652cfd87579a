"""Scores of finished images agree with the engine's own, whatever the chunk."""

import torch
from torch import nn

from zsq.contract import Teacher
from zsq.core.runtime import Runtime
from zsq.engine import scoring
from zsq.engine.heads import head_similarities, patch_entropies
from zsq.engine.scoring import Scorer
from zsq.engine.statistics import TappedTeacher, image_distances
from zsq.teacher import load_teacher
from zsq.teacher.digits import load_digits_images


def test_scorer_agrees_with_the_engine(tiny_teacher):
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator())
    standard = tiny_teacher.spec.pixels_to_standard(pixels)
    scores = Scorer(tiny_teacher, Runtime()).score(pixels)
    logits, distances = scores.logits_NK, scores.bn_distance_N
    assert scores.attention is None
    tapped_logits, layers = TappedTeacher(tiny_teacher)(standard)
    torch.testing.assert_close(logits, tapped_logits)
    torch.testing.assert_close(logits, tiny_teacher.network(standard))
    torch.testing.assert_close(distances, image_distances(layers))


def test_scores_do_not_depend_on_the_chunk(tiny_teacher, monkeypatch):
    pixels = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator())
    whole = Scorer(tiny_teacher, Runtime()).score(pixels)
    monkeypatch.setattr(scoring, "SCORE_BATCH", 3)
    chunks = Scorer(tiny_teacher, Runtime()).score(pixels)
    torch.testing.assert_close(chunks.logits_NK, whole.logits_NK)
    torch.testing.assert_close(chunks.bn_distance_N, whole.bn_distance_N)


def test_without_batch_norm_attention_says_something_of_each_image():
    teacher = load_teacher("embedded:digits-vit")
    pixels = load_digits_images("train")[0][:5]
    scorer = Scorer(teacher, Runtime())
    scores = scorer.score(pixels)
    assert scores.bn_distance_N.isnan().all()
    tapped = scorer.attention.tapped
    with torch.no_grad():
        tapped(teacher.spec.pixels_to_standard(pixels))
    taps = tapped.take()
    torch.testing.assert_close(scores.attention.patch_entropy_N, patch_entropies(taps, 5))
    torch.testing.assert_close(scores.attention.head_similarity_N, head_similarities(taps, 5))
    assert ((scores.attention.head_similarity_N > 0) & (scores.attention.head_similarity_N < 1)).all()
    scorer.attention.at_once = 2
    chunks = scorer.score(pixels)
    torch.testing.assert_close(chunks.attention.patch_entropy_N, scores.attention.patch_entropy_N)
    torch.testing.assert_close(chunks.attention.head_similarity_N, scores.attention.head_similarity_N)


def test_a_teacher_with_neither_says_nothing(tiny_teacher):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
    plain = Teacher("plain", network, tiny_teacher.spec, 5, "0" * 64)
    scores = Scorer(plain, Runtime()).score(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert scores.attention is None and scores.bn_distance_N.isnan().all()
