"""Losses between a student and its teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation(student_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of logits, mean over N (Hinton et al. 2015)."""
    return temperature**2 * F.kl_div(
        F.log_softmax(student_NK.float() / temperature, dim=1),
        F.log_softmax(teacher_NK.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
