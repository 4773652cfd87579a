"""NaN and infinity are found where they first occur: before work on one image, then in every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zsq.contract import Teacher
from zsq.core.errors import NonFiniteError
from zsq.core.runtime import Runtime
from zsq.core.seeding import torch_generator
from zsq.engine.executed import executed
from zsq.engine.objectives import TeacherPass
from zsq.engine.outputs import finite, flat

CUDA_EVERY = 25  # steps between two looks from the host, which would wait for the device


@torch.no_grad()
def require_finite_outputs(teacher: Teacher) -> None:
    """Nothing, where the teacher's outputs on one image are finite: random pixels, black and white too.

    Raises:
        NonFiniteError: they are not; it names the first module whose output is not.
    """
    device = next((p.device for p in teacher.network.parameters()), torch.device("cpu"))
    pixels = torch.randint(256, (1, *teacher.spec.shape), generator=torch_generator(0, 0, "finite outputs"))
    pixels.flatten(2)[..., 0], pixels.flatten(2)[..., -1] = 0, 255
    standard = teacher.spec.pixels_to_standard(pixels.to(torch.uint8).to(device))
    if finite(teacher.logits(standard)):
        return
    calls = executed(teacher.network, lambda: teacher.logits(standard))
    first = next((call.name for call in calls if not call.finite and call.name), "its own forward")
    raise NonFiniteError(
        f"teacher '{teacher.name}' gives NaN or infinity for an image of random pixels, first in '{first}'",
        "finite outputs for every image",
        "check its weights and its mean and std; a network for float16 may overflow on black or white pixels",
    )


def place_sums(forward: TeacherPass) -> Tensor:
    """(L + 2,) sums that are finite where images, layers' statistics and outputs are: see `Guard`."""
    squares = [sums.s2_NC.detach().sum() for sums in forward.layers]
    seen = forward.viewed_NCHW.detach().sum()
    seen = seen.to(squares[0]) if squares else seen
    said = [each.detach().sum().to(seen) for each in flat(forward.outputs)]
    return torch.stack([seen, *squares, sum(said, torch.zeros_like(seen))])


class Guard:
    """Stops a loop at the first step whose loss is not finite.

    On a CPU at that step; on CUDA at most `CUDA_EVERY` steps later, since asking each step would wait for the
    device each step. What is reported is the first such step in both cases.
    """

    def __init__(self, terms: Sequence[str], layers: Sequence[str], runtime: Runtime) -> None:
        """Names of the loss terms and of the measured layers, in order."""
        self.terms = tuple(terms)
        self.places = ("the images", *(f"layer '{name}'" for name in layers), "the outputs")
        self.every = 1 if torch.device(runtime.device).type == "cpu" else CUDA_EVERY
        self.precision = runtime.precision
        self.steps = 0
        self._first: Tensor | None = None  # iteration, values and sums of the first bad step; NaN before

    def watch(self, iteration: int, total: Tensor, values: Tensor, sums: Tensor) -> None:
        """After a step's losses: `total` is their weighted sum, `values` (T,) each, `sums` of `place_sums`.

        Raises:
            NonFiniteError: now, or at a step before.
        """
        self.steps += 1
        if self.every == 1:
            if not bool(total.isfinite()):
                raise self._error(iteration, values, sums)
            return
        at = torch.full((1,), float(iteration), device=total.device)
        row = torch.cat([at, values.detach().float(), sums.float()])
        if self._first is None:
            self._first = torch.full_like(row, torch.nan)
        unset = self._first[0].isnan() & ~total.detach().isfinite()
        self._first = torch.where(unset, row, self._first)
        if self.steps % self.every == 0:
            self.settle()

    def settle(self) -> None:
        """The host's look at what the device remembers; also called at the end of a loop.

        Raises:
            NonFiniteError: a step was not finite.
        """
        if self._first is None or bool(self._first[0].isnan()):
            return
        count = len(self.terms)
        raise self._error(int(self._first[0]), self._first[1 : 1 + count], self._first[1 + count :])

    def finished(self, images_NCHW: Tensor) -> None:
        """After the last step, whose own result no loss has seen.

        Raises:
            NonFiniteError: the images are not finite.
        """
        self.settle()
        if not bool(images_NCHW.isfinite().all()):
            raise NonFiniteError("the images are not finite after the last iteration", remedy=self._remedy())

    def _error(self, iteration: int, values: Tensor, sums: Tensor) -> NonFiniteError:
        terms = [name for name, value in zip(self.terms, values, strict=True) if not bool(value.isfinite())]
        bad = (~sums.isfinite()).nonzero()
        places = self.places if len(self.places) == len(sums) else ()
        where = f", first at {places[int(bad[0])]}" if len(bad) and places else ""
        return NonFiniteError(
            f"NaN or infinity in loss {' and '.join(terms) or 'total'} at iteration {iteration}{where}",
            "finite losses",
            self._remedy(),
        )

    def _remedy(self) -> str:
        precise = "--precision fp32, " if self.precision == "bf16" else ""
        return (
            f"the images are not written; try {precise}a smaller --set learning_rate, or check the teacher's "
            "weights, mean and std"
        )
