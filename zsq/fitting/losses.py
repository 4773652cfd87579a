"""Losses between a student and its teacher."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["batchmean", "mean"]


def distillation(
    student_NK: Tensor, teacher_NK: Tensor, temperature: float, reduction: Reduction = "batchmean"
) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits (Hinton et al. 2015).

    The mean over N, or with `mean` over N and K: K times smaller, as some public code has it.
    """
    loss = temperature**2 * F.kl_div(
        F.log_softmax(student_NK.float() / temperature, dim=1),
        F.log_softmax(teacher_NK.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return loss if reduction == "batchmean" else loss / student_NK.shape[1]


def imitation(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Cross-entropy to the teacher's top-1 class, mean over N: the images carry no labels."""
    return F.cross_entropy(student_NK, teacher_NK.argmax(dim=1))
