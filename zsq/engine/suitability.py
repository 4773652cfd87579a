"""Which teachers a method or student can work with, by its facts: the one place that refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from zsq.contract import Facts, Teacher
from zsq.core.errors import MismatchError, NoAttentionError, NoBatchNormError, UntraceableError
from zsq.engine.attention import require_attention
from zsq.engine.detector import require_boxes
from zsq.engine.executed import require_gradients
from zsq.engine.statistics import require_batch_norm
from zsq.engine.targets import class_count
from zsq.engine.weights import require_estimates

# What a fact asks for -> the check of a teacher for it, with the name of who asks.
NEEDS: Mapping[str, Callable[[Teacher, str], object]] = {
    "needs_batch_norm": require_batch_norm,
    "needs_labels": class_count,
    "needs_boxes": require_boxes,
    "needs_moments": require_estimates,
    "needs_attention": require_attention,
    "needs_gradients": require_gradients,
}
Refusal = (NoBatchNormError, NoAttentionError, MismatchError, UntraceableError)

# Who has one of these is named before all others. Batch norm comes first: of teachers that have both, such
# as LeViT and MobileViT, `pyramid` was ahead on the one that was measured (docs/transformers.md).
NAMED_FIRST = ("needs_batch_norm", "needs_attention", "recommended")


def require(teacher: Teacher, owner: str, facts: Facts, others: Mapping[str, Facts]) -> None:
    """Nothing, where `teacher` has what `facts` ask for.

    Args:
        owner: name of the method or student, for the message.
        others: name -> facts of all methods, or students: the message names those that take this teacher.

    Raises:
        NoBatchNormError: no batch norm with stored statistics.
        NoAttentionError: no attention, or none that zsq can read.
        MismatchError: no classes, no boxes, no statistics that follow from the weights, or no gradients.
        UntraceableError: the network cannot be captured, to find its attention.
    """
    try:
        for need, check in NEEDS.items():
            if getattr(facts, need):
                check(teacher, owner)
    except Refusal as error:
        fit = [name for name in suited(teacher, others) if name != owner]
        remedy = f"this teacher suits {', '.join(fit)}" if fit else "nothing here takes this teacher"
        remedy = f"nothing but {fit[0]} suits this teacher" if len(fit) == 1 else remedy
        raise type(error)(str(error), remedy=remedy) from None


def suited(teacher: Teacher, others: Mapping[str, Facts]) -> list[str]:
    """The names of those that `teacher` suits, see `ordered`."""
    return ordered([name for name, reason in refusals(teacher, others).items() if reason is None], others)


def ordered(names: Sequence[str], others: Mapping[str, Facts]) -> list[str]:
    """First those that read what a teacher stores of its images, batch norm statistics or attention, and of
    them those that are recommended."""
    return sorted(names, key=lambda name: [not getattr(others[name], fact) for fact in NAMED_FIRST])


def refusals(teacher: Teacher, others: Mapping[str, Facts]) -> dict[str, str | None]:
    """Name -> why `teacher` does not suit it, in one line that calls it "it"; None where it does."""
    known: dict[str, str | None] = {}

    def lacks(need: str) -> str | None:
        if need not in known:
            try:
                NEEDS[need](teacher, "it")
                known[need] = None
            except Refusal as error:
                known[need] = str(error)
        return known[need]

    found = {}
    for name, facts in others.items():
        reasons = (lacks(need) for need in NEEDS if getattr(facts, need))
        found[name] = next((reason for reason in reasons if reason is not None), None)
    return found


def suits(teacher: Teacher, facts: Facts) -> bool:
    """Whether `teacher` has what `facts` ask for."""
    return refusals(teacher, {"it": facts})["it"] is None
