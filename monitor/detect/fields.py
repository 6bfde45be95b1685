"""The parts of a JSON document that people wrote: what was expected at a place, and what was found there.

Owns the refusals' words. Refuses to know what a document means.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Collection

_API_NAME: Final = re.compile(r"[a-zA-Z0-9:_-]{1,128}\Z")
_SPACED_NAME: Final = re.compile(r"(?! )[a-zA-Z0-9:_ -]{1,128}(?<! )\Z")
_MAX_SHOWN: Final = 80
_MAX_BITS: Final = 1023  # beyond, an integer is no double


class Wrong(Exception):
    """Where and what, still without the name of the file."""


def refuse(where: str, what: str) -> NoReturn:
    """Raise Wrong."""
    raise Wrong(f"{where}: {what}" if where else what)


def object_of(value: object, where: str, allowed: Collection[str], required: str = "") -> dict[str, Any]:
    """An object of allowed keys, with the required one among them; raises Wrong."""
    if not isinstance(value, dict):
        refuse(where, f"expected an object, found {shown(value)}")
    for key in value:
        if key not in allowed:
            refuse(where, f"unknown key {shown(key)}; expected {either(allowed)}")
    if required and required not in value:
        refuse(where, f"expected the key {required!r}")
    return value


def api_name(value: object, where: str) -> str:
    """A name of a profile or a dimension; raises Wrong."""
    if not isinstance(value, str) or not _API_NAME.match(value):
        refuse(where, f"expected a name of [a-zA-Z0-9:_-], 1 to 128, found {shown(value)}")
    return value


def behavior_name(value: object, where: str) -> str:
    """A name of a behavior; raises Wrong. Spaces, which the API refuses, stand in the developer guide's examples."""
    if not isinstance(value, str) or not _SPACED_NAME.match(value):
        refuse(where, f"expected a name of [a-zA-Z0-9:_-], perhaps with spaces, 1 to 128, found {shown(value)}")
    return value


def flag(fields: dict[str, Any], key: str, where: str) -> bool:
    """The value of a key that may be left out, false then; raises Wrong."""
    value = fields.get(key, False)
    if not isinstance(value, bool):
        refuse(f"{where}.{key}", f"expected true or false, found {shown(value)}")
    return value


def integer(value: object, where: str, least: int, most: int) -> int:
    """A whole number within limits; raises Wrong."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        refuse(where, f"expected a whole number of {least} to {most}, found {shown(value)}")
    return value


def one_of(value: Any, where: str, allowed: Collection[Any]) -> Any:  # noqa: ANN401 - one of any constants
    """One of some constants; raises Wrong."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value not in allowed:
        refuse(where, f"expected {either(allowed)}, found {shown(value)}")
    return value


def either(words: Collection[object]) -> str:
    """Name alternatives: a, b or c."""
    *most, last = map(str, words)
    return f"{', '.join(most)} or {last}" if most else last


def shown(value: object) -> str:
    """As much of a value as a message can bear."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print one of many digits
    return "nothing" if value is None else ascii(value)[:_MAX_SHOWN]
