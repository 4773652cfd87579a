"""READ FIRST. What the parts of zsq owe each other.

A `Teacher` goes in. A `Plan` cuts the run into `Group`s, pure data and the unit of determinism and resume. A
`Generator` turns a group into a `SyntheticBatch`; the writer turns batches into shards. A `Student` fits a
quantized copy of the teacher on stored images and returns a `FittedStudent`. There is one file for each.

Tensor suffixes everywhere: N images, C channels, H height, W width, K classes, L statistic layers.
"""

from zsq.contract.method import Generator, SyntheticBatch
from zsq.contract.parts import Facts, Silent, StepLog
from zsq.contract.student import (
    THEN,
    Fit,
    FittedStudent,
    Form,
    ImagesOrigin,
    Made,
    QuantizedTensor,
    Student,
    check_fitted,
)
from zsq.contract.teacher import Teacher

__all__ = [
    "THEN",
    "Facts",
    "Fit",
    "FittedStudent",
    "Form",
    "Generator",
    "ImagesOrigin",
    "Made",
    "QuantizedTensor",
    "Silent",
    "StepLog",
    "Student",
    "SyntheticBatch",
    "Teacher",
    "check_fitted",
]
