"""What two templates have different, resource by resource and property by property.

Owns the comparison, which matches members of lists by their names. Pure. Refuses to know which of the two is right.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from monitor.cloud.words import Change, moved, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monitor.cloud.parts import Json

_KEYS: Final = ("Name", "Metric", "Sid")
"""What members of a list are told apart by, where all have it."""
_SECTIONS: Final = ("Parameters", "Conditions", "Outputs", "Description")
STACK: Final = "AWS::CloudFormation::Stack"


def changes(before: Json, after: Json) -> list[Change]:
    """What has to be done to a stack with the template `before`, so that it is as `after`; {}: there is no stack."""
    old, new = before.get("Resources", {}), after.get("Resources", {})
    old, new = _readable(old, {**new, **old}), _readable(new, {**old, **new})
    found: list[Change] = []
    for logical in sorted({*old, *new}):
        if logical not in old:
            condition = new[logical].get("Condition")
            given = (f"if {condition}",) if condition else ()
            found.append(Change(sign="+", type=new[logical]["Type"], name=name_of(new, logical), details=given))
        elif logical not in new:
            kept = old[logical].get("DeletionPolicy", "Delete") != "Delete"
            found.append(Change(sign="=" if kept else "-", type=old[logical]["Type"], name=name_of(old, logical)))
        else:
            details = tuple(differences(old[logical], new[logical]))
            if details:
                found.append(Change(sign="~", type=new[logical]["Type"], name=name_of(new, logical), details=details))
    rest = tuple(
        detail for section in _SECTIONS for detail in differences(before.get(section), after.get(section), section)
    )
    return [*found, Change(sign="~", type=STACK, name="", details=rest)] if rest and before else found


def _readable(resources: Json, known: Json) -> Json:
    """Resources that refer to each other by their names. `known`: whatever they may refer to."""

    def read(node: Any) -> Any:  # noqa: ANN401 - what JSON has
        if isinstance(node, list):
            return [read(one) for one in node]
        if not isinstance(node, dict):
            return node
        if node.keys() == {"Ref"} and node["Ref"] in known:
            return name_of(known, node["Ref"])
        return {key: read(value) for key, value in node.items()}

    found: Json = read(resources)
    return found


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:  # noqa: ANN401 - what JSON has
    """Yield a line for each value that differs."""
    if before == after:
        return
    if isinstance(before, list) and isinstance(after, list):
        old, new = _by_name(before, after)
        if old is None or new is None:
            yield moved(path, before, after)
            return
        before, after = old, new
    if not isinstance(before, dict) or not isinstance(after, dict):
        yield moved(path, before, after)
        return
    for key in dict.fromkeys((*before, *after)):
        inner = f"{path}.{key}" if path and key != "Properties" else path if key == "Properties" else str(key)
        yield from differences(before.get(key), after.get(key), inner)


def _by_name(*lists: list[Any]) -> list[dict[str, Any] | None]:
    """The lists as objects, by what names their members; None: nothing does."""
    for key in _KEYS:
        found = [{_text(one.get(key)): one for one in some if isinstance(one, dict)} for some in lists]
        if all(
            len(named) == len(some) and all(key in one for one in some)
            for named, some in zip(found, lists, strict=True)
        ):
            return list(found)
    return [None, None]


def _text(found: Any) -> str:  # noqa: ANN401 - what JSON has
    return found if isinstance(found, str) else json.dumps(found)
