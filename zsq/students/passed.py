"""Any student between analytic passes: some change the float network first, some the fitted student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from zsq.contract import Bits, FittedStudent, StepLog, Student, Teacher
from zsq.errors import OptionError
from zsq.quantizers.passes import Fitted, Prepared, check_passes, finish, prepare
from zsq.students.calibration import BATCH, check_images


class Passed(Student):
    """`student` fitted to what the passes make of its teacher; options and name are the student's own."""

    def __init__(self, student: Student, passes: Sequence[str]) -> None:
        """Check the passes.

        Raises:
            OptionError: passes that do not exist, that cannot follow each other or that the student refuses.
        """
        super().__init__(student.options, student.runtime)
        check_passes(passes)
        refused = dict(student.refused_passes)
        if student.folds_batch_norm:
            refused["adapt-bn"] = "it folds batch norms away"
        for name in passes:
            if name in refused:
                raise OptionError(f"student {student.name} takes no pass {name}: {refused[name]}")
        self.student, self.passes = student, tuple(passes)
        self._prepared: tuple[nn.Module, Prepared] | None = None

    def images_trained(self, teacher: Teacher, num_images: int) -> float:
        """As the student's."""
        return self.student.images_trained(teacher, num_images)

    def fit(
        self,
        teacher: Teacher,
        pixels_NCHW: Tensor,
        bits: Bits,
        *,
        first_last: int | None = None,
        seed: int = 0,
        log: StepLog | None = None,
    ) -> FittedStudent:
        """See `Student.fit`.

        Raises:
            MismatchError: also for a pass that finds nothing to do in the network.
        """
        check_images(teacher, pixels_NCHW)
        prepared = self._prepare(teacher.network)
        changed = replace(teacher, network=prepared.network)
        fitted = self.student.fit(changed, pixels_NCHW, bits, first_last=first_last, seed=seed, log=log)
        assert isinstance(fitted.network, fx.GraphModule)
        batches = [
            teacher.spec.pixels_to_norm(pixels.to(self.runtime.device)).contiguous(
                memory_format=torch.channels_last
            )
            for pixels in pixels_NCHW.split(BATCH)
        ]
        finish(self.passes, Fitted(fitted.network, prepared, batches))
        return fitted

    def _prepare(self, network: nn.Module) -> Prepared:
        """Once per teacher: what a student compiles belongs to one float network."""
        if self._prepared is None or self._prepared[0] is not network:
            self._prepared = network, prepare(self.passes, network)
        return self._prepared[1]
