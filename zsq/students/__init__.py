"""Students: one file each, and the one table of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zsq.contract import THEN, Student
from zsq.core.errors import OptionError, UnknownNameError
from zsq.core.imagespec import ImageSpec
from zsq.core.runtime import Runtime
from zsq.fitting.chain import chain_of
from zsq.fitting.passed import Passed
from zsq.students.aac_abn import AACABN
from zsq.students.adaround import AdaRound
from zsq.students.aquant import AQuant
from zsq.students.binary import Binary
from zsq.students.brecq import BRECQ
from zsq.students.cfws import CFWS
from zsq.students.daq import DAQ
from zsq.students.dir_net import DIRNet
from zsq.students.dqnet import DQNet
from zsq.students.erq import ERQ
from zsq.students.gdfq_ft import GDFQFT
from zsq.students.genie_m import GenieM
from zsq.students.kd import KD
from zsq.students.lq_net import LQNet
from zsq.students.lsq_kd import LSQKD
from zsq.students.mixed import Mixed
from zsq.students.pd_quant import PDQuant
from zsq.students.ptq import PTQ
from zsq.students.qdrop import QDrop
from zsq.students.qfd import QFD
from zsq.students.quantface import QuantFace
from zsq.students.repq import RepQ
from zsq.students.vertical import Vertical
from zsq.widths import Bits

STUDENTS: dict[str, type[Student]] = {
    "ptq": PTQ,
    "repq": RepQ,
    "erq": ERQ,
    "cfws": CFWS,
    "aac-abn": AACABN,
    "adaround": AdaRound,
    "brecq": BRECQ,
    "qdrop": QDrop,
    "pd-quant": PDQuant,
    "aquant": AQuant,
    "genie-m": GenieM,
    "kd": KD,
    "gdfq-ft": GDFQFT,
    "lsq-kd": LSQKD,
    "lq-net": LQNet,
    "binary": Binary,
    "dir-net": DIRNet,
    "vertical": Vertical,
    "qfd": QFD,
    "quantface": QuantFace,
    "daq": DAQ,
    "dqnet": DQNet,
    "mixed": Mixed,
}


def student_class(name: str) -> type[Student]:
    """The student `name`; of several names with commas between them, their chain.

    Raises:
        UnknownNameError: no such student. OptionError: one twice in a chain.
    """
    names = name.split(THEN)
    for each in names:
        if each not in STUDENTS:
            raise UnknownNameError("student", each, STUDENTS, "zsq list students")
        if names.count(each) > 1:
            raise OptionError(f"student {each} twice in {name}", "each student of a chain once")
    return STUDENTS[name] if len(names) == 1 else chain_of(tuple(STUDENTS[each] for each in names))


def create(
    name: str,
    spec: ImageSpec,
    options: Mapping[str, Any],
    runtime: Runtime,
    iterations: int | None = None,
    passes: Sequence[str] = (),
) -> Student:
    """The student `name` with `options` over its defaults for images of `spec`.

    Args:
        name: of a student, or of a chain: `genie-m,lsq-kd`, whose options are named `genie-m.iterations`.
        passes: names of `zsq.passes.PASSES`, in order.

    Raises:
        UnknownNameError: no such student.
        OptionError: an option or pass that it does not have or take, or a wrong value; a chain in which one
            cannot start from the result of the one before.
    """
    student = student_class(name)
    resolved = student.options_class.resolve(f"student {name}", spec, options, iterations)
    created = student(resolved, runtime)
    passes = (passes,) if isinstance(passes, str) else passes
    return Passed(created, passes) if passes else created


def check_bits(student: Student, bits: Bits, first_last: int | None, spec: ImageSpec) -> None:
    """`Student.check_bits`, whose error then names the students that take these widths.

    Raises:
        OptionError: the student does not take them.
    """
    try:
        student.check_bits(bits, first_last)
    except OptionError as error:
        others = [name for name in STUDENTS if _takes(name, bits, first_last, spec)]
        remedy = f"students that take it: {', '.join(others)}" if others else ""
        raise OptionError(str(error), remedy=remedy) from None


def _takes(name: str, bits: Bits, first_last: int | None, spec: ImageSpec) -> bool:
    try:
        create(name, spec, {}, Runtime()).check_bits(bits, first_last)
    except OptionError:
        return False
    return True


def own_defaults(student: Student, spec: ImageSpec) -> dict[str, dict[str, Any]]:
    """Option -> {"ours": value, "published": value} where a default is ours because of the images' size."""
    declared = student.options.declared_ours(spec)
    return {name: {"ours": ours, "published": published} for name, (ours, published) in declared.items()}


def own_defaults_line(name: str, student: Student, spec: ImageSpec) -> str | None:
    """The same as a line to print, None where there is nothing to say."""
    pairs = own_defaults(student, spec).items()
    said = [
        f"{key}={pair['ours']} is our default here, published is {pair['published']}" for key, pair in pairs
    ]
    return f"{name}: {'; '.join(said)}" if said else None
