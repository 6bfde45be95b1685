"""Expectations as a person reads and edits them: a TOML configuration with comments, and AWS's security profile.

Owns the words and their escapes. Refuses to know where expectations come from, files and clocks.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitor.detect.behaviors import aws_form, expected
from monitor.detect.learn import AMOUNTS, FORBIDDEN, MOST, NAMES
from monitor.detect.profile import Behavior

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from monitor.detect.learn import Learned, Member, Seen
    from monitor.expect import Expect

PROFILE_NAME: Final = "kinwatch-learned"
_ONCE: Final = 1
_WHAT: Final = {
    "child_processes": "alive at once",
    "depth": "levels below a root",
    "forks_per_minute": "forked in the busiest minute",
}
_HEADER: Final = re.compile(r"\s*\[\[?\s*([A-Za-z0-9_.-]+)")


def watch_table(  # noqa: PLR0913, PLR0917 - what a table consists of
    name: str, kind: str, value: str, enforce: str, learned: Learned, users: Mapping[int, str]
) -> str:
    """One [[watch]] and its expectations. `users`: names of user ids, for the comments."""
    lines = ["[[watch]]", f"name = {_text(name)}", f"{kind} = {value if kind == 'pid' else _text(value)}"]
    if enforce != "off":
        lines.append(f"enforce = {_text(enforce)}")
    lines += ["", "[watch.expect]"]
    for rule in AMOUNTS:
        amount = getattr(learned.expect, rule)
        if amount is not None:
            lines.append(f"{rule} = {amount}  # {learned.most[rule]} {_WHAT[rule]}")
    for rule in (*MOST, NAMES):
        if getattr(learned.expect, rule) is not None:
            lines += _set(rule, learned.seen[rule], users if rule == "uids" else {})
    lines += [f"{rule} = false" for rule in FORBIDDEN if getattr(learned.expect, rule) is False]
    lines += [f"# {rule} is not judged: {_comment(why)}" for rule, why in learned.left_out.items()]
    lines += [f"# cannot be expected, and will raise alarms: {_comment(what)}" for what in learned.refused]
    return "\n".join(lines) + "\n"


def configuration(heading: Iterable[str], tables: Iterable[str]) -> str:
    """A whole file: comments, then watches."""
    return "\n".join(("".join(f"# {_comment(line)}\n" for line in heading), *tables))


def with_watches(text: str, names: Sequence[str], tables: Mapping[str, str]) -> str:
    """Put new tables in the place of the watches of the same name; all else stays as it is written.

    `names`: of the file's watches, in their order. Tables of other names come last. What the result says has to be
    compared with what was meant: a line within a text of several lines may look like the head of a table.
    """
    chunks: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines(keepends=True):
        head = _HEADER.match(line)
        if head:
            chunks.append((head[1], []))
        chunks[-1][1].append(line)
    out: list[str] = []
    left = dict(tables)
    position, replacing, tail = -1, False, ""
    for key, lines in chunks:
        if key == "watch":
            position += 1
        elif not key.startswith("watch."):
            replacing = False
        if replacing and key != "watch":
            tail = _tail(lines)
            continue
        out.append(tail)
        tail = ""
        name = names[position] if key == "watch" and position < len(names) else ""
        replacing = name in tables
        if replacing:
            out.append(left.pop(name, ""))
            tail = _tail(lines)
        else:
            out += lines
    out.append(tail)
    return "".join((*out, *(f"\n{table}" for table in left.values())))


def profile(watches: Iterable[tuple[str, Expect]]) -> str:
    """What AWS can express of it, as `aws iot create-security-profile --cli-input-json` takes it.

    Most alive at once is judged by child_procs_peak: num_child_procs grows with the length of a window. Sets without
    members are left out, for an empty list conforms to everything.
    """
    behaviors: list[dict[str, Any]] = []
    for name, expect in watches:
        if expect.child_processes is not None:
            most = Behavior(
                name=f"child_processes_{name}",
                metric=f"child_procs_peak_{name}",
                operator="less-than-equals",
                number=expect.child_processes,
            )
            behaviors.append(aws_form(most))
        sets = {rule: getattr(expect, rule) or None for rule in MOST}
        full = msgspec.structs.replace(expect, child_processes=None, **sets)
        behaviors += [aws_form(behavior) for behavior in expected(name, full)]
    whole = {
        "securityProfileName": PROFILE_NAME,
        "securityProfileDescription": "What kinwatch saw",
        "behaviors": behaviors,
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _tail(lines: list[str]) -> str:
    """What stands at the end of a table and is no part of it: comments after a blank line, about what follows."""
    start = len(lines)
    while start and lines[start - 1].lstrip()[:1] in {"", "#"}:
        start -= 1
    while start < len(lines) and lines[start].strip():
        start += 1
    return "".join(lines[start:])


def _set(rule: str, members: Mapping[Member, Seen], users: Mapping[int, str]) -> list[str]:
    if not members:
        return [f"{rule} = []"]
    lines = [f"{rule} = ["]
    for member, seen in members.items():
        user = users.get(member) if isinstance(member, int) else None
        comment = f"{_comment(user)}, {_when(seen)}" if user else _when(seen)
        lines.append(f"    {member if isinstance(member, int) else _text(member)},  # {comment}")
    return [*lines, "]"]


def _when(seen: Seen) -> str:
    if not seen.times:
        return "expected before"
    if seen.times == _ONCE:
        return f"once, {_second(seen.first)}"
    return f"{seen.times} times, {_second(seen.first)} to {_second(seen.last)}"


def _second(time: str) -> str:
    return f"{time[:19]}Z"


def _text(text: str) -> str:
    """A basic string of TOML 1.0: JSON's, whose escapes it shares, and DEL escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    """Text that may stand in a comment: no control characters."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
