"""The figures of `zsq audit` where they were written into a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError

from zsq.core.errors import ShardError
from zsq.core.files import read_regular
from zsq.core.records import Sha256, first_fault
from zsq.shards.manifest import Manifest

AUDIT_NAME = "audit.json"
MAX_AUDIT_BYTES = 2**24
Percent = Annotated[FiniteFloat, Field(ge=0, le=100)]


class _Part(BaseModel):
    """What a card takes of the file; it holds more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Control(_Part):
    """How many planted copies of training images the audit found."""

    planted: NonNegativeInt
    named_exact: NonNegativeInt
    named_altered: NonNegativeInt


class Membership(_Part):
    """Of one space: 50 is chance."""

    membership_auc: Percent
    membership_ci95: tuple[Percent, Percent]


class AuditFigures(_Part):
    """The figures of one set; `named` are the images that may be copies."""

    shards_sha256: Sha256 | None = None
    num_synthetic: NonNegativeInt
    num_train: NonNegativeInt
    num_holdout: NonNegativeInt
    named: tuple[NonNegativeInt, ...]
    control: Control
    spaces: dict[str, Membership]


def audit_of(run: Path, manifest: Manifest) -> AuditFigures | None:
    """What `run`/audit.json says, None where it is not there or is of other shards than the manifest's.

    Raises:
        ShardError: it is damaged or not in the format.
    """
    path = run / AUDIT_NAME
    try:
        found = AuditFigures.model_validate_json(read_regular(path, MAX_AUDIT_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ShardError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        remedy = "make it again, or move it away"
        raise ShardError(f"{path}: {first_fault(error)}", "what zsq audit writes", remedy) from None
    return found if found.shards_sha256 == manifest.shards_sha256 else None
