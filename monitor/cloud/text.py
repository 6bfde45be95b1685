"""A template as text, JSON or YAML.

Owns the subset of YAML that needs no library and reads the same in YAML 1.1 and 1.2. Refuses to know what a template
means.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

Format = Literal["json", "yaml"]

_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*(::[A-Za-z0-9]+)*\Z")
_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null"})
"""What YAML 1.1 takes for something else than text."""
_PAIR: Final = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})")


def encode(template: dict[str, Any], form: Format) -> str:
    """Write a template, its keys in their order, with a line end. Values are what JSON has."""
    if form == "json":
        return json.dumps(template, indent=2) + "\n"
    return "\n".join(_lines(template)) + "\n"


def _lines(node: Any) -> Iterator[str]:  # noqa: ANN401 - what JSON has
    """Lines of a collection that is not empty."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _entry(f"{_scalar(key)}:", value)
        return
    for value in node:
        if _is_full(value):
            first, *others = _lines(value)
            yield f"- {first}"
            yield from (f"  {line}" for line in others)
        else:
            yield f"- {_scalar(value)}"


def _entry(head: str, value: object) -> Iterator[str]:
    if _is_full(value):
        yield head
        yield from (f"  {line}" for line in _lines(value))
    else:
        yield f"{head} {_scalar(value)}"


def _is_full(value: object) -> bool:
    return isinstance(value, dict | list | tuple) and bool(value)


def _scalar(value: object) -> str:
    if isinstance(value, str):
        if _PLAIN.match(value) and value.lower() not in _WORDS:
            return value
        return _PAIR.sub(_joined, json.dumps(value))
    text = json.dumps(value)
    if isinstance(value, float) and "e" in text and "." not in text:
        return text.replace("e", ".0e")  # 1e+22 is text in YAML 1.1
    return text


def _joined(pair: re.Match[str]) -> str:
    """YAML knows no surrogates."""
    high, low = int(pair[1], 16), int(pair[2], 16)
    return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"
