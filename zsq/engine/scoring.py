"""What the teacher says of finished images, in chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from zsq.contract import Teacher
from zsq.core.errors import NoBatchNormError
from zsq.core.runtime import Runtime
from zsq.engine.executed import images_at_once
from zsq.engine.outputs import PerImage
from zsq.engine.statistics import TappedTeacher, image_distances

SCORE_BATCH = 128


class Scorer:
    """What the teacher says of stored images: logits where its task stores them, and each image's own BN
    distance."""

    def __init__(self, teacher: Teacher, runtime: Runtime) -> None:
        """`teacher` is on the runtime's device; one without BN gives NaN distances."""
        self.teacher, self.device = teacher, runtime.device
        self.stores_logits = teacher.task.stores_logits
        self.at_once = images_at_once(teacher.network, teacher.spec, SCORE_BATCH)
        try:
            self.tapped: TappedTeacher | None = TappedTeacher(teacher)
        except NoBatchNormError:
            self.tapped = None

    @torch.no_grad()
    def score(self, pixels_NCHW: Tensor) -> tuple[Tensor | None, Tensor]:
        """uint8 images -> float32 logits (N, K), None where the task stores none, and BN distances (N,): on
        the CPU, always in fp32."""
        logits: list[Tensor] = []
        distances: list[Tensor] = []
        for pixels in pixels_NCHW.split(self.at_once):
            standard = self.teacher.spec.pixels_to_standard(pixels.to(self.device))
            if self.tapped is None:
                outputs: PerImage = self.teacher.logits(standard) if self.stores_logits else ()
                distances.append(torch.full((len(pixels),), torch.nan))
            else:
                outputs, layers = self.tapped(standard)
                distances.append(image_distances(layers))
            if self.stores_logits:
                assert isinstance(outputs, Tensor)
                logits.append(outputs)
        stored = torch.cat(logits).float().cpu() if logits else None
        return stored, torch.cat(distances).float().cpu()
