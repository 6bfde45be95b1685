"""What the service says about a report, read leniently; knows no clock, no topic filter and no report but by its id.

The documents show `reportId` in one place and an odd key in another, and no refusal but one was ever seen, so a field
that is missing or strange never makes an answer unreadable.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import cbor2
import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

TOPIC: Final = "$aws/things/{thing}/defender/metrics/{format}"
"""Where reports go; answers come to `<this>/accepted` and `<this>/rejected`."""

_ANSWER: Final = re.compile(r"\$aws/things/([^/]+)/defender/metrics/(json|cbor)/(accepted|rejected)\Z")
_MAX_TEXT: Final = 200
_DECODE: Final[dict[str, Callable[[bytes], Any]]] = {"json": msgspec.json.decode, "cbor": cbor2.loads}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer."""

    accepted: bool
    report_id: int | None
    """None: the answer does not say; then it is about the one report in flight."""
    code: str = ""
    """statusDetails.ErrorCode of a refusal, as it came; "" when there is none."""
    message: str = ""
    """statusDetails.ErrorMessage."""


def parse(topic: str, payload: bytes, thing: str) -> Answer | None:
    """Read what came on a topic. None: it is no answer about this thing, or cannot be read at all."""
    found = _ANSWER.match(topic)
    if found is None or found[1] != thing:
        return None
    try:
        answer = _DECODE[found[2]](payload)
    except Exception:  # noqa: BLE001 - bytes from outside; both decoders raise whatever they like
        return None
    if not isinstance(answer, dict) or answer.get("thingName", thing) != thing:
        return None
    details = answer.get("statusDetails")
    details = details if isinstance(details, dict) else {}
    return Answer(
        accepted=found[3] == "accepted" and answer.get("status") != "REJECTED",
        report_id=_id(answer.get("reportId")),
        code=_text(details.get("ErrorCode")),
        message=_text(details.get("ErrorMessage")),
    )


def _id(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(1 << 63)):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str:
    """A short line: it is printed, and becomes the name of a counter. What is neither text nor a number is none."""
    text = value if isinstance(value, str) else str(value) if isinstance(value, int) and abs(value) < 1 << 63 else ""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MAX_TEXT])
