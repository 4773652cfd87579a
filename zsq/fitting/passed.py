"""Any student between analytic passes: some change the float network first, some the fitted student."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from zsq.contract import Fit, FittedStudent, Student, Teacher
from zsq.core.errors import MismatchError, OptionError
from zsq.fitting.calibration import norm_batches
from zsq.passes import Fitted, Prepared, check_passes, finish, prepare, sees_images, split_pass
from zsq.quantizers.grids import holds_zero
from zsq.quantizers.layers import weight_of
from zsq.widths import Bits


class Passed(Student):
    """Fits `student` to the network that the passes make of its teacher; the options are the student's."""

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
        if not holds_zero(student.form):
            refused |= dict.fromkeys(("prune", "prune-global"), "its weights are never zero")
        for name, _ in map(split_pass, passes):
            if name in refused:
                raise OptionError(f"student {student.name} takes no pass {name}: {refused[name]}")
        self.student, self.passes = student, tuple(passes)
        self._prepared: tuple[nn.Module, Prepared] | None = None

    def first_last_bits(self, asked: int | None) -> int | None:
        """The student's."""
        return self.student.first_last_bits(asked)

    def images_trained(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """The same number as for the student alone."""
        return self.student.images_trained(teacher, num_images, bits)

    def training_work(self, teacher: Teacher, num_images: int, bits: Bits) -> float:
        """The same as for the student alone."""
        return self.student.training_work(teacher, num_images, bits)

    def training_key(self, bits: Bits, first_last: int | None) -> Hashable:
        """As the student's, where its teacher stays the same: not one that each fit makes of its images."""
        if sees_images(self.passes):
            return bits, first_last
        return self.student.training_key(bits, first_last)

    def check_bits(self, bits: Bits, first_last: int | None) -> None:
        """As the student does."""
        self.student.check_bits(bits, first_last)

    def check(self, fit: Fit) -> None:
        """See `Student.check`; it starts from what the passes make of the teacher, and from nothing else."""
        if fit.start is not None:
            found = f"student {self.student.name} between passes, from the result of {fit.start.student}"
            raise OptionError(found, "passes around the whole chain")
        super().check(fit)

    def run(self, fit: Fit) -> FittedStudent:
        """Apply the passes on the float network, fit the student, apply the passes on the student.

        Raises:
            MismatchError: also for a pass that finds nothing to do in the network.
        """
        batches = list(norm_batches(fit.teacher.spec, fit.pixels_NCHW, self.runtime.device))
        prepared = self._prepare(fit.teacher, batches)
        changed = replace(fit.teacher, network=prepared.network)
        own = replace(fit, teacher=changed, masks=prepared.masks)
        self.student.check(own)
        fitted = self.student.run(own)
        assert isinstance(fitted.network, fx.GraphModule)
        _check_pruned(fitted.network, prepared, self.student.name)
        finish(self.passes, Fitted(fitted.network, prepared, batches))
        assert fitted.made is not None
        return replace(fitted, made=replace(fitted.made, passes=self.passes))

    def _prepare(self, teacher: Teacher, batches: list[Tensor]) -> Prepared:
        """The changed float network, made once per teacher where it does not depend on the images: what a
        student compiles belongs to one network."""
        network = teacher.network
        if sees_images(self.passes):
            return prepare(self.passes, network, teacher.example(), batches)
        if self._prepared is None or self._prepared[0] is not network:
            self._prepared = network, prepare(self.passes, network, teacher.example())
        return self._prepared[1]


@torch.no_grad()
def _check_pruned(network: fx.GraphModule, prepared: Prepared, student: str) -> None:
    for name, mask in prepared.masks.items():
        weight = weight_of(network, name)
        if bool(weight[~mask.to(weight.device)].any()):
            found = f"student {student} does not leave pruned weights zero ('{name}')"
            raise MismatchError(found, "one that does, such as genie-m or lsq-kd")
