"""Which teachers a method or student can work with, by its facts: the one place that refuses."""

from __future__ import annotations

from collections.abc import Mapping

from zsq.contract import Facts, Teacher
from zsq.core.errors import MismatchError, NoBatchNormError
from zsq.engine.detector import require_boxes
from zsq.engine.statistics import require_batch_norm
from zsq.engine.targets import class_count
from zsq.engine.weights import require_estimates


def require(teacher: Teacher, owner: str, facts: Facts, others: Mapping[str, Facts]) -> None:
    """Nothing, where `teacher` has what `facts` ask for.

    Args:
        owner: name of the method or student, for the message.
        others: name -> facts of all methods, or students: the message names those that take this teacher.

    Raises:
        NoBatchNormError: no batch norm with stored statistics.
        MismatchError: no classes, no boxes, or no statistics that follow from the weights.
    """
    try:
        _check(teacher, owner, facts)
    except (NoBatchNormError, MismatchError) as error:
        fit = [name for name in others if name != owner and suits(teacher, others[name])]
        remedy = f"this teacher suits {', '.join(fit)}" if fit else "nothing here takes this teacher"
        remedy = f"nothing but {fit[0]} suits this teacher" if len(fit) == 1 else remedy
        raise type(error)(str(error), remedy=remedy) from None


def suits(teacher: Teacher, facts: Facts) -> bool:
    """Whether `teacher` has what `facts` ask for."""
    try:
        _check(teacher, "", facts)
    except (NoBatchNormError, MismatchError):
        return False
    return True


def _check(teacher: Teacher, owner: str, facts: Facts) -> None:
    if facts.needs_batch_norm:
        require_batch_norm(teacher, owner)
    if facts.needs_labels:
        class_count(teacher, owner)
    if facts.needs_boxes:
        require_boxes(teacher, owner)
    if facts.needs_moments:
        require_estimates(teacher, owner)
