"""Records in JSON files: what is read is checked field by field, what is written is what was set, in that order.

Fields that are not named in a record may be there; a field that is has its type and lies within reason, so that whoever
reads a record need not ask again.

A JSON object out of a file from outside, or a sentence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from colo_lib.errors import InputError


def _as_written(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """`value` itself, once it passed: 2 does not become 2.0."""
    check(value)
    return value


# Monotonic or UTC times of this century, in ns, and their differences, are far from what int64 holds.
Ns = Annotated[int, Field(ge=0, lt=2**62)]

Count = Annotated[int, Field(ge=0, lt=2**53)]

Number = Annotated[float, Field(ge=0), WrapValidator(_as_written)]

# May be below zero, as what is left of a sum.
Signed = Annotated[float, WrapValidator(_as_written)]

Ordinal = Annotated[int, Field(ge=1, le=1_000_000)]


class Record(BaseModel):
    """A record from outside: no type is made another, no number is infinite or none."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True, defer_build=True)

    @model_validator(mode="wrap")
    @classmethod
    def _in_order(cls, given: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        """Keep the order in which the fields were told: a record is written as it was read."""
        record = build(given)
        if isinstance(given, dict):
            fields = record.__dict__
            ordered = {name: fields[name] for name in given if name in fields} | fields
            fields.clear()
            fields.update(ordered)
        return record

    @classmethod
    def read(cls, file: Path, most_bytes: int | None = None) -> Self:
        """The record that `file` holds; raises InputError naming the file and what is not as it should be."""
        return checked(cls, read_object(file, MAX_BYTES if most_bytes is None else most_bytes), file)

    def plain(self) -> dict[str, Any]:
        """The fields that were set, as JSON has them."""
        return self.model_dump(exclude_unset=True)

    def write(self, file: Path) -> None:
        """Write it so that a reader sees all of it or nothing."""
        write_json(file, self.plain())

    def joined(self, *others: Record, **changes: Any) -> Self:
        """This record with what others say, then with `changes`; raises ValidationError for what it cannot hold."""
        fields = self.plain()
        for other in others:
            fields |= other.plain()
        return type(self).model_validate(fields | changes)


MAX_BYTES = 64 * 2**20
MOST_TOLD = 3
REMEDY = "take it again from where it was recorded, or leave it out"

Model = TypeVar("Model", bound=BaseModel)


def damaged(what: object, how: str) -> InputError:
    """The error for a file or a folder from outside that is not what was recorded: what, how, and the remedy."""
    return InputError(f"{what}: {how}; {REMEDY}")


def read_object(file: Path, most_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object that `file` holds; raises InputError where it is larger than `most_bytes`, or no JSON object.

    Text that is no text (a NUL, half a surrogate pair) is refused here: it can be no name, no path, and not be shown.
    """
    try:
        if file.exists() and not file.is_file():
            raise ValueError("no file, but a folder, a pipe or the like")
        if file.stat().st_size > most_bytes:
            raise damaged(file, f"larger than {most_bytes} bytes, which no such file is")
        loaded = json.loads(file.read_text(encoding="utf-8"))
        for text in _texts(loaded):
            if b"\0" in text.encode():
                raise ValueError(f"the text {text[:40]!r} holds a NUL")
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(file, f"not readable as JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise damaged(file, f"holds no JSON object but a {type(loaded).__name__}")
    return loaded


def checked(model: type[Model], loaded: dict[str, Any], file: object) -> Model:
    """`loaded` as `model`; raises InputError naming `file` and the first fields that are not as they should be."""
    try:
        return model.model_validate(loaded)
    except ValidationError as error:
        raise damaged(file, in_words(error)) from None


def in_words(error: ValidationError) -> str:
    """The first fields that are not as they should be, each with its value and what is wrong with it."""
    faults = [f"{_place(item['loc'])!r} = {_short(item['input'])}: {item['msg']}" for item in error.errors()]
    more = f" (and {len(faults) - MOST_TOLD} more)" if len(faults) > MOST_TOLD else ""
    return "; ".join(faults[:MOST_TOLD]) + more


def _texts(value: Any) -> Iterator[str]:
    """Every text in it, names too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value:
            yield from _texts(item)
        yield from _texts(list(value.values())) if isinstance(value, dict) else ()


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "the record"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def now_utc() -> str:
    """Wall-clock time, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write_json(file: Path, value: Any) -> None:
    """Write JSON so that a reader sees all of it or nothing: temporary name, fsync, rename."""
    temporary = file.with_name(file.name + ".tmp")
    with open(temporary, "w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)
