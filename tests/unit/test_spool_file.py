"""The spool's file when something is wrong: broken, taken, full, or its process killed.

Owns real files, a real full disk and a real kill. Refuses to know what messages say.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from monitor.defender import spool as spool_module
from monitor.defender.spool import Spool
from monitor.errors import AlreadyRunning, ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
NOW_S: Final = 2e9
DISK_BYTES: Final = 1 << 20

PUTTER: Final = """
import sys
from pathlib import Path
from monitor.defender.spool import Spool

spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30, max_age_s=1e9)
number = 0
while True:
    kind = "alarm" if number % 2 else "events"
    last = spool.put(kind, [b"%d" % number], 2e9)
    print(number, last, flush=True)
    number += 1
"""


def opened(path: Path, **changes: object) -> Spool:
    """A spool in a file, with room."""
    settings: dict[str, object] = {"max_bytes": 1 << 30, "max_age_s": 1e9} | changes
    return Spool(path, **settings)  # type: ignore[arg-type]


def payloads(spool: Spool, kind: str = "alarm") -> list[bytes]:
    """What may be sent."""
    return [entry.payload for entry in spool.waiting(kind, NOW_S, 1_000_000)]  # type: ignore[arg-type]


# -------- broken --------


@pytest.mark.parametrize("content", [b"this is no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 8000])
def test_a_file_that_is_no_spool_is_set_aside_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(content)
    with closing(opened(path)) as spool:
        spool.put("alarm", [b"x"], NOW_S)
        assert payloads(spool) == [b"x"]
    assert Path(f"{path}.broken").read_bytes() == content


def test_a_spool_with_a_hole_in_it_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with closing(opened(path)) as spool:
        spool.put("alarm", [b"%d" % number * 500 for number in range(200)], NOW_S)
        name = spool.name
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    with closing(opened(path)) as spool:
        assert payloads(spool) == []
        assert spool.name != name  # ids begin again, so its messages need another name
        spool.put("alarm", [b"x"], NOW_S)
    assert Path(f"{path}.broken").stat().st_size == size
    with closing(opened(path)) as spool:
        assert payloads(spool) == [b"x"]


def test_an_empty_file_becomes_a_spool(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    path.touch()
    with closing(opened(path)) as spool:
        assert payloads(spool) == []
    assert not Path(f"{path}.broken").exists()


def test_a_spool_of_a_newer_kinwatch_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    opened(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma user_version = 99")
    with pytest.raises(ConfigInvalid, match="newer kinwatch"):
        opened(path)
    with pytest.raises(ConfigInvalid, match="newer kinwatch"):  # and not taken by the first attempt
        opened(path)
    assert not Path(f"{path}.broken").exists()


def test_a_spool_only_root_can_read(tmp_path: Path) -> None:
    path = tmp_path / "state" / "spool.db"
    opened(path).close()
    assert [file.stat().st_mode & 0o777 for file in (path, Path(f"{path}.lock"))] == [0o600, 0o600]
    assert path.parent.stat().st_mode & 0o027 == 0


@pytest.mark.parametrize("name", ["spool.db", "spool.db.lock"])
def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path, name: str) -> None:
    target = tmp_path / "elsewhere"
    (tmp_path / name).symlink_to(target)
    with pytest.raises((ConfigInvalid, OSError)):
        opened(tmp_path / "spool.db")
    assert not target.exists()


def test_a_folder_that_cannot_be_made_is_said_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigInvalid, match=r"daemon\.state_dir: .*file/spool\.db"):
        opened(tmp_path / "file" / "spool.db")


# -------- taken --------


def test_a_second_publisher_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with closing(opened(path)) as first:
        first.put("alarm", [b"x"], NOW_S)
        with pytest.raises(AlreadyRunning, match=r"spool\.db: another kinwatch"):
            opened(path)
        assert payloads(first) == [b"x"]
    with closing(opened(path)) as second:
        assert payloads(second) == [b"x"]


def test_another_process_is_refused_too_and_its_death_frees_the_file(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with putter(path) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(AlreadyRunning):
            opened(path)
    opened(path).close()


# -------- killed --------


@contextmanager
def putter(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that puts numbers and tells each one that is put; killed in the end."""
    child = subprocess.Popen([sys.executable, "-c", PUTTER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("rows", [1, 50, 400])
def test_a_kill_loses_nothing_that_was_put(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "spool.db"
    with putter(path) as child:
        assert child.stdout is not None
        told = [child.stdout.readline() for _ in range(rows)]
        os.kill(child.pid, signal.SIGKILL)
        told += child.stdout.read().splitlines(keepends=True)
    numbers = [int(line.split()[0]) for line in told if line.endswith("\n")]
    last_id = int(told[len(numbers) - 1].split()[1])
    assert len(numbers) >= rows
    with closing(opened(path)) as spool:
        kept = sorted(int(payload) for kind in ("alarm", "events") for payload in payloads(spool, kind))
        # The last put may have been finished and not told.
        assert kept in (numbers, [*numbers, len(numbers)])
        assert spool.put("alarm", [b"x"], NOW_S) > last_id


# -------- full --------


@pytest.fixture(name="disk")
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    if os.geteuid() != 0:
        pytest.skip("a file system can only be mounted by root")
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


def fill(disk: Path) -> Path:
    """Take all the room there is."""
    path = disk / "ballast"
    with path.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path


def fill_spool(spool: Spool, disk: Path) -> tuple[Path, list[bytes]]:
    """Put a hundred messages, take the rest of the disk and put one more, which must not fit; returns all of them."""
    put = [b"%04d" % number + b"x" * 1000 for number in range(101)]
    spool.put("alarm", put[:-1], NOW_S)
    assert not spool._memory
    ballast = fill(disk)
    spool.put("alarm", put[-1:], NOW_S)
    assert len(spool._memory) == 1
    return ballast, put


def test_on_a_full_disk_messages_wait_in_memory_and_are_written_later(disk: Path) -> None:
    said: list[str] = []
    with closing(opened(disk / "spool.db", say=said.append)) as spool:
        ballast, put = fill_spool(spool, disk)
        for _ in range(20):
            put.append(b"%04d" % len(put))
            spool.put("alarm", put[-1:], NOW_S)
        assert payloads(spool) == put
        assert len(said) == 1
        assert "kept in memory" in said[0]
        ids = [entry.id for entry in spool.waiting("alarm", NOW_S, 1000)]
        ballast.unlink()
        put.append(b"after")
        spool.put("alarm", put[-1:], NOW_S)
        assert not spool._memory
        assert [entry.id for entry in spool.waiting("alarm", NOW_S, 1000)][:-1] == ids
        assert spool.sizes().alarms == len(put)
    with closing(opened(disk / "spool.db")) as spool:
        assert payloads(spool) == put
        assert [entry.id for entry in spool.waiting("alarm", NOW_S, 1000)][:-1] == ids


def test_what_has_arrived_is_not_sent_again_though_a_full_disk_cannot_forget_it(disk: Path) -> None:
    with closing(opened(disk / "spool.db")) as spool:
        ballast, put = fill_spool(spool, disk)
        sent = []
        for _ in range(1000):
            entries = spool.waiting("alarm", NOW_S, 3)
            if not entries:
                break
            sent += [entry.payload for entry in entries]
            spool.done([entry.id for entry in entries])
            fill(disk)
        assert sent == put
        assert spool._leaving  # else the disk was not full enough for this test
        assert spool.ready_s("alarm") is None
        ballast.unlink()
        spool.put("alarm", [b"after"], NOW_S)
        spool.done([])
        assert spool.sizes().alarms == 1
    with closing(opened(disk / "spool.db")) as spool:
        assert payloads(spool) == [b"after"]


def test_a_value_that_cannot_be_saved_is_an_error_and_the_old_one_stays(disk: Path) -> None:
    with closing(opened(disk / "spool.db")) as spool:
        spool.save("window", b"old")
        fill_spool(spool, disk)
        with pytest.raises(OSError, match="spool: "):
            spool.save("window", b"new" * 100_000)
        assert spool.load("window") == b"old"


def test_a_spool_that_finds_its_disk_full_is_refused_with_words(disk: Path) -> None:
    fill(disk)
    with pytest.raises((ConfigInvalid, OSError)):
        opened(disk / "spool.db")


def test_a_close_on_a_full_disk_counts_what_it_could_not_keep(disk: Path) -> None:
    dropped: list[int] = []
    spool = opened(disk / "spool.db", on_drop=dropped.append)
    fill_spool(spool, disk)
    in_memory = len(spool._memory)
    spool.close()
    assert sum(dropped) == in_memory > 0


# -------- full, as the file itself says it --------


@contextmanager
def no_room(spool: Spool) -> Iterator[None]:
    """SQLite refuses every further page, as it does on a full disk."""
    (pages,) = spool._rows.execute("pragma page_count").fetchone()
    spool._rows.execute(f"pragma max_page_count = {pages}")
    try:
        yield
    finally:
        spool._rows.execute("pragma max_page_count = 1000000")


BIG: Final = b"x" * 10_000


def test_in_memory_the_oldest_batches_go_first_and_alarms_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "MEMORY_ROWS", 4)
    dropped: list[int] = []
    with closing(opened(tmp_path / "spool.db", on_drop=dropped.append)) as spool:
        with no_room(spool):
            spool.put("alarm", [b"A" + BIG], NOW_S)
            for number in range(6):
                spool.put("events", [b"%d" % number + BIG], NOW_S, lines=10)
            spool.put("alarm", [b"B" + BIG], NOW_S)
            assert [payload[:1] for payload in payloads(spool)] == [b"A", b"B"]
            assert [payload[:1] for payload in payloads(spool, "events")] == [b"4", b"5"]
            assert sum(dropped) == spool.sizes().dropped["events"] == 40
        spool.put("alarm", [b"C"], NOW_S)
        assert spool.sizes().dropped == {"events": 40}
    with closing(opened(tmp_path / "spool.db")) as spool:
        assert [payload[:1] for payload in payloads(spool)] == [b"A", b"B", b"C"]
        assert spool.sizes().dropped == {"events": 40}


def test_memory_is_bounded_in_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "MEMORY_BYTES", 3 * len(BIG))
    with closing(opened(tmp_path / "spool.db")) as spool, no_room(spool):
        for _ in range(10):
            spool.put("events", [BIG], NOW_S)
        assert len(payloads(spool, "events")) == 3
        assert spool.sizes().dropped == {"events": 7}


def test_in_memory_a_held_message_waits_and_merges_as_in_the_file(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "spool.db")) as spool:
        with no_room(spool):
            held = spool.put("alarm", [BIG], NOW_S, ready_s=NOW_S + 5.0)
            assert payloads(spool) == []
            assert spool.ready_s("alarm") == NOW_S + 5.0
            assert spool.merge(held, BIG + b"2", 1)
        spool.put("alarm", [b"x"], NOW_S)
        (entry,) = (one for one in spool.waiting("alarm", NOW_S + 5.0, 9) if one.id == held)
        assert (entry.payload, entry.merged) == (BIG + b"2", 1)
        assert not spool.merge(held, b"3", 1)


def test_a_message_that_was_only_in_memory_shares_its_id_with_no_other_life(tmp_path: Path) -> None:
    seen = []
    for _ in range(4):
        with closing(opened(tmp_path / "spool.db")) as spool, no_room(spool):
            spool.put("alarm", [BIG, BIG], NOW_S)
            entries = spool.waiting("alarm", NOW_S, 9)
            seen += [entry.id for entry in entries]
            spool.done([entry.id for entry in entries])
    assert len(set(seen)) == 8


def test_an_id_of_memory_is_still_the_messages_when_it_is_in_the_file(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "spool.db")) as spool:
        with no_room(spool):
            spool.put("alarm", [BIG], NOW_S)
            (sent,) = spool.waiting("alarm", NOW_S, 9)
        spool.put("alarm", [b"after"], NOW_S)
        spool.done([sent.id])  # the acknowledgement came when it had been written
        assert payloads(spool) == [b"after"]
