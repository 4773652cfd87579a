"""One base of what is read from outside, and one line for what is wrong with it."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError, model_validator

from zsq.core.records import Record, Sha256, StrictRecord, first_fault


class Part(Record):
    rate: Annotated[float, Field(gt=0)] = 1.0
    count: Annotated[int, Field(ge=1)] = 1


class Whole(Record):
    parts: tuple[Part, ...] = ()
    sha256: Sha256 = "0" * 64

    @model_validator(mode="after")
    def _not_three(self) -> Whole:
        if len(self.parts) == 3:
            raise ValueError("three parts")
        return self


class Exact(StrictRecord):
    count: int


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"parts": [{}, {"rate": -1}]}, "parts.1.rate: Input should be greater than 0, not -1"),
        ({"parts": [{"colour": 1}]}, "parts.0.colour: no such key"),
        ({"parts": [{"cuont": 1}]}, "parts.0.cuont: no such key; did you mean 'count'?"),
        ({"prats": []}, "prats: no such key; did you mean 'parts'?"),
        ({"parts": 3}, "parts: Input should be a list in brackets, not 3"),
        ({"parts": [{}] * 3}, "three parts"),
        ({"sha256": "G" * 64}, "sha256: String should match pattern '^[0-9a-f]{64}$', not 'GGG"),
        ({"parts": [{"count": [1]}]}, "parts.0.count: Input should be a valid integer"),
    ],
)
def test_the_first_fault_names_its_key_and_what_was_found(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Whole(**values)
    assert first_fault(caught.value, Whole).startswith(line)


@pytest.mark.parametrize("value", ["x" * 9999, -(10**5000), "9" * 9999], ids=["text", "integer", "digits"])
def test_a_long_value_is_cut(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Part(rate=1, count=value)  # type: ignore[arg-type]
    assert len(first_fault(caught.value)) < 250


def test_text_that_is_no_json_is_a_fault_without_key() -> None:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate_json("{" * 2000)
    assert first_fault(caught.value).startswith("Invalid JSON")
    assert len(first_fault(caught.value)) < 250


def test_a_strict_record_converts_nothing_and_both_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Exact.model_validate({"count": "1"})
    assert Part.model_validate({"count": "1"}).count == 1
    with pytest.raises(ValidationError):
        Exact(count=1).count = 2  # type: ignore[misc]
