"""What a watch's expectations mean to the hooks: which files they compare with, what they count, whom they kill.

Owns the way from a watch to the loader's rules of enforcement. Refuses to know matching, lines and alarms: the engine
raises those, whatever is enforced.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from monitor.engine._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from monitor.engine._native import CData
    from monitor.expect import Expect
    from monitor.schema import Enforcement
    from monitor.watch import Watch

MODES: Final = {"off": lib.KW_MODE_OFF, "dry-run": lib.KW_MODE_DRY_RUN, "kill": lib.KW_MODE_KILL}


def enforced_reasons(expect: Expect) -> tuple[int, ...]:
    """Those of enum kw_reason that the kernel can act on for such expectations; edges and the network are not."""
    present = {
        lib.KW_REASON_CHILDREN: expect.child_processes is not None,
        lib.KW_REASON_EXECUTABLE: expect.executables is not None,
        lib.KW_REASON_DEPTH: expect.depth is not None,
        lib.KW_REASON_RATE: expect.forks_per_minute is not None,
        lib.KW_REASON_UID: expect.uids is not None,
        lib.KW_REASON_MEMFD: expect.memfd is False,
        lib.KW_REASON_DELETED: expect.deleted is False,
        lib.KW_REASON_TEMPORARY: expect.temporary is False,
    }
    return tuple(reason for reason, is_present in present.items() if is_present)


def begin(loader: CData, settings: Enforcement) -> int:
    """What holds for all watches; a breaker that had tripped is closed again. The loader's result."""
    result: int = lib.kw_loader_enforcement(loader, settings.max_kills_per_minute, settings.fail == "open")
    return result


def put(loader: CData, slot: int, watch: Watch, settings: Enforcement, check: Callable[[int], int]) -> None:
    """Make a watch's expectations the kernel's, its limit of children excepted. `check` sees each of the results."""
    expect = watch.expect
    reasons = enforced_reasons(expect)
    if reasons and settings.fail == "closed":
        reasons += (lib.KW_REASON_UNTRACKED,)
    lib.kw_loader_locate(loader, slot, expect.temporary is False)
    with _opened(expect.executables or ()) as files:
        count = -1 if expect.executables is None else len(files)
        check(lib.kw_loader_expect_files(loader, slot, files, count))
    users = expect.uids or ()
    check(lib.kw_loader_expect_uids(loader, slot, users, len(users)))
    rules = ffi.new(
        "struct kw_rules *",
        {
            "mode": MODES[watch.enforce] if reasons else lib.KW_MODE_OFF,
            "reasons": sum(1 << reason for reason in reasons),
            "depth": expect.depth or 0,
            "forks_per_minute": expect.forks_per_minute or 0,
        },
    )
    check(lib.kw_loader_enforce(loader, slot, rules))


def withdraw(loader: CData, slot: int, check: Callable[[int], int]) -> None:
    """Judge and enforce nothing of a slot any more."""
    check(lib.kw_loader_enforce(loader, slot, ffi.new("struct kw_rules *")))
    check(lib.kw_loader_expect_files(loader, slot, [], -1))
    check(lib.kw_loader_expect_uids(loader, slot, [], 0))
    lib.kw_loader_locate(loader, slot, 0)


@contextlib.contextmanager
def _opened(paths: Sequence[str]) -> Iterator[list[int]]:
    """Descriptors of the files that are there: the kernel is asked what it knows them by."""
    with contextlib.ExitStack() as stack:
        files = []
        for path in paths:
            with contextlib.suppress(OSError):
                files.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
                stack.callback(os.close, files[-1])
        yield files
