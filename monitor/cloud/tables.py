"""The columns of Athena tables over kinwatch's messages, from the schema of the event log.

Owns how a type of the schema is called in Hive. Refuses to know the schema itself: engine.lines has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec
from msgspec import inspect

from monitor.engine import lines

if TYPE_CHECKING:
    from collections.abc import Iterable

_SIMPLE: Final[dict[type[inspect.Type], str]] = {
    inspect.StrType: "string",
    inspect.LiteralType: "string",
    inspect.BoolType: "boolean",
    inspect.IntType: "bigint",
    inspect.FloatType: "double",
}
_MESSAGE: Final = {"thing": "string", "alarm_id": "string", "merged": "bigint"}
"""What defender.alarms adds to a line."""


def alarm_columns() -> dict[str, str]:
    """Hive type of each key of messages on the alarm topic, by name, in lower case."""
    return _columns([lines.Alarm, lines.Clear]) | _MESSAGE


def event_columns() -> dict[str, str]:
    """Hive type of each key of any line."""
    return _columns(get_args(lines.Line))


def _columns(kinds: Iterable[type[msgspec.Struct]]) -> dict[str, str]:
    columns = {"event": "string"}
    for kind in kinds:
        found = inspect.type_info(kind)
        if isinstance(found, inspect.StructType):
            for field in found.fields:
                name, hive = field.encode_name.lower(), _hive(field.type)
                columns[name] = hive if columns.get(name, hive) == hive else "string"
    return columns


def _hive(found: inspect.Type) -> str:
    """What differs from line to line is text: the reader of the table gets it as it was written."""
    if isinstance(found, inspect.UnionType):
        kinds = {_hive(one) for one in found.types if not _is_unset(one)}
        if kinds == {"bigint", "double"}:
            return "double"
        return kinds.pop() if len(kinds) == 1 else "string"
    if isinstance(found, inspect.VarTupleType | inspect.ListType):
        return f"array<{_hive(found.item_type)}>"
    if isinstance(found, inspect.StructType):
        fields = ",".join(f"{field.encode_name.lower()}:{_hive(field.type)}" for field in found.fields)
        return f"struct<{fields}>"
    return _SIMPLE.get(type(found), "string")


def _is_unset(found: Any) -> bool:  # noqa: ANN401 - msgspec has no public type for it
    return isinstance(found, inspect.CustomType) and found.cls is msgspec.UnsetType
