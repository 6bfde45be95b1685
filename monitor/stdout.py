"""Standard output, written through to the end: who asked for something hears when it did not go out.

Refuses to know what is written.
"""

from __future__ import annotations

import os
import sys


class StdoutFailed(Exception):
    """What was asked for could not be written."""


def put(text: str) -> None:
    """Write to stdout, through to the end. Raises StdoutFailed, BrokenPipeError: it did not go out."""
    if sys.stdout is None:  # it was closed before we began
        return
    try:
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:  # a locale of before UTF-8; stderr does the same by itself
            encoding = sys.stdout.encoding
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StdoutFailed(error.strerror or str(error)) from error


def abandon() -> None:
    """Point stdout at nothing, so that the interpreter's own flush at exit does not fail again."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
