"""What is normal for a watch: each kind of expectation, and its value in the one form that everybody else relies on.

Owns the rules of an expectation's value and the looks at the file system and the user database that they need. Refuses
to know TOML, flags and how a process is judged.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
import stat
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PATH_BYTES = 4095  # KW_PATH_BYTES in ebpf/event.h, less the terminating zero
MAX_PREFIXES = 256  # of one expectation; the judgement of an address looks at each of them
MAX_NAMES = 256  # each DNS answer is compared with all of them
MAX_NAME = 253  # characters of a name, RFC 1035 2.3.4
MAX_PORTS = 256
MAX_PORT = 65535
MAX_EXECUTABLES = 256
MAX_EDGES = 256
MAX_UIDS = 256
MAX_UID = 0xFFFF_FFFE  # (uid_t)-1 is nobody at all, setuid(2)
ARROW: Final = " -> "

_PLACE = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([0-9]{1,5})\Z")
_NETWORK = re.compile(r"[a-fA-F0-9:.]{2,45}(/[0-9]{1,3})?\Z")  # neither netmasks nor scopes
_NAME = re.compile(r"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\Z")
_DOTTED = re.compile(r"[0-9]+(\.[0-9]+){3}\Z")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class Expect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is normal for a watch; None: nothing is expected. Rules about processes are about descendants, not roots."""

    child_processes: int | None = None
    """Most descendants alive at once."""
    executables: tuple[str, ...] | None = None
    """Files that descendants may execute, absolute paths with their links resolved, each once; (): none."""
    edges: tuple[str, ...] | None = None
    """"BEFORE -> EXECUTED": which image may execute which, as `executables` writes them; (): none may."""
    depth: int | None = None
    """How far below their root descendants may be; its child: 1."""
    forks_per_minute: int | None = None
    """Most descendants forked within 60 s."""
    uids: tuple[int, ...] | None = None
    """Real user ids that descendants may have, in the initial user namespace, ascending; (): none. Enforcement looks at
    the effective ones as well."""
    memfd: bool | None = None
    """False: no image may be in memory only."""
    deleted: bool | None = None
    """False: no image may be a file without a name."""
    temporary: bool | None = None
    """False: no image may lie where anybody may write: on tmpfs or ramfs, or below a directory that is open to all."""
    destinations: tuple[str, ...] | None = None
    """Networks, of some one port, that kin may connect and send to, as `destinations` writes them; (): none."""
    destination_names: tuple[str, ...] | None = None
    """Names, as `destination_names` writes them, that may be connected and sent to as well: the addresses that DNS
    answers to kin gave to them before. Without `destinations`: only these."""
    listening_ports: tuple[int, ...] | None = None
    """Ports, TCP and UDP, that kin may listen on, ascending; (): none."""

    @property
    def somewhere(self) -> bool:
        """Only some destinations are expected."""
        return self.destinations is not None or self.destination_names is not None


class ImpossibleValue(ValueError):
    """A value cannot be that: what was found and what to do; the caller knows which key and file."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


def networks(texts: Iterable[str]) -> tuple[str, ...]:
    """Bring networks into their one form, each once, in their order: "10.1.2.3/8" is "10.0.0.0/8".

    An address alone is a network of one; IPv4 mapped into IPv6 is IPv4. Raises ImpossibleValue.
    """
    found = tuple(dict.fromkeys(_network(text) for text in texts))
    if len(found) > MAX_PREFIXES:
        raise ImpossibleValue(f"expected at most {MAX_PREFIXES} networks, found {len(found)}", "join some of them")
    return found


def destinations(texts: Iterable[str]) -> tuple[str, ...]:
    """Bring networks, each with a port or without, into their one form, each once, in their order.

    "10.1.2.3/8:443" is "10.0.0.0/8:443", "[::1]:53" is "[::1/128]:53"; without a port as `networks` has it, and any
    port is meant. Raises ImpossibleValue.
    """
    found = tuple(dict.fromkeys(_destination(text) for text in texts))
    if len(found) > MAX_PREFIXES:
        raise ImpossibleValue(f"expected at most {MAX_PREFIXES} networks, found {len(found)}", "join some of them")
    return found


def place_of(destination: str) -> tuple[str, int]:
    """The network and the port of a destination; 0: any port. Nothing is checked."""
    split = _PLACE.match(destination)
    return (split[1] or split[2], int(split[3])) if split else (destination, 0)


def destination_names(texts: Iterable[str]) -> tuple[str, ...]:
    """Bring names of DNS into their one form: lower case, no dot at the end, each once, in their order.

    "*.example.com" stands for all names below example.com, at any depth. Raises ImpossibleValue.
    """
    found = tuple(dict.fromkeys(_name(text) for text in texts))
    if len(found) > MAX_NAMES:
        raise ImpossibleValue(f"expected at most {MAX_NAMES} names, found {len(found)}", "join some of them with *.")
    return found


def ports(numbers: Iterable[int]) -> tuple[int, ...]:
    """Bring port numbers of 1 to 65535 into their one form: ascending, each once. Raises ImpossibleValue."""
    found = tuple(sorted(set(numbers)))
    if len(found) > MAX_PORTS:
        raise ImpossibleValue(f"expected at most {MAX_PORTS} ports, found {len(found)}", "expect the important ones")
    return found


def executables(paths: Iterable[str]) -> tuple[str, ...]:
    """Bring paths of executables into their one form: links resolved, for the kernel maps the file itself, each once.

    A file that is not there yet is no error. Raises ImpossibleValue for what cannot be executed.
    """
    found = tuple(dict.fromkeys(_executable(path) for path in paths))
    if len(found) > MAX_EXECUTABLES:
        what = f"expected at most {MAX_EXECUTABLES} executables, found {len(found)}"
        raise ImpossibleValue(what, "leave some of them out, or make a watch of the part that starts them")
    return found


def edges(texts: Iterable[str]) -> tuple[str, ...]:
    """Bring edges "BEFORE -> EXECUTED" into their one form, each once. Raises ImpossibleValue."""
    found = tuple(dict.fromkeys(_edge(text) for text in texts))
    if len(found) > MAX_EDGES:
        raise ImpossibleValue(f"expected at most {MAX_EDGES} edges, found {len(found)}", "leave some of them out")
    return found


def images_of(edge: str) -> tuple[str, str]:
    """The image before and the one executed, of an edge in its one form."""
    before, _, executed = edge.partition(ARROW)
    return before, executed


def uids(users: Iterable[int | str]) -> tuple[int, ...]:
    """Bring user ids and names of users into their one form: numbers, ascending, each once. Raises ImpossibleValue."""
    found = tuple(sorted({_uid(user) for user in users}))
    if len(found) > MAX_UIDS:
        raise ImpossibleValue(f"expected at most {MAX_UIDS} users, found {len(found)}", "leave some of them out")
    return found


def written(expect: Expect) -> None:
    """Check an expectation that is in its one form without a look at this machine. Raises ValueError."""
    destinations(expect.destinations or ())
    destination_names(expect.destination_names or ())
    ports(expect.listening_ports or ())
    if any(not 1 <= port <= MAX_PORT for port in expect.listening_ports or ()):
        raise ImpossibleValue(f"expected ports of 1 to {MAX_PORT}", "record again")
    for numbers in (expect.child_processes, expect.depth, expect.forks_per_minute, *(expect.uids or ())):
        if numbers is not None and not 0 <= numbers <= MAX_UID:
            raise ImpossibleValue(f"expected numbers of 0 to {MAX_UID}, found {numbers}", "record again")
    images = [path for edge in expect.edges or () for path in images_of(edge)]
    for path in (*(expect.executables or ()), *images):
        _path(path)
    for most, members in ((MAX_EXECUTABLES, expect.executables), (MAX_EDGES, expect.edges), (MAX_UIDS, expect.uids)):
        if len(members or ()) > most:
            raise ImpossibleValue(f"expected at most {most} members", "record again")


def networks_alone(expect: Expect) -> bool:
    """Destinations are expected, and networks alone say which: no port, no name."""
    if expect.destinations is None or expect.destination_names is not None:
        return False
    return not any(place_of(text)[1] for text in expect.destinations)


def missing(expect: Expect) -> tuple[str, ...]:
    """Expected executables that do not exist, as things stand now."""
    return tuple(path for path in expect.executables or () if not os.path.exists(path))  # noqa: PTH110 - text in, text out


def _name(text: str) -> str:
    name = text.lower().removesuffix(".")
    if not _NAME.match(name) or len(name.removeprefix("*.")) > MAX_NAME or not text.isascii():
        what = f"expected a name of DNS such as broker.local or *.example.com, found {text!r}"
        raise ImpossibleValue(what, "write other letters in their xn-- form, and * only as the first of several labels")
    if _DOTTED.match(name):
        raise ImpossibleValue(f"expected a name, found {text!r}, which is an address", "write it in destinations")
    return name


def _network(text: str, found: str = "") -> str:
    """`found`: what stands there, if it is more than the network."""
    try:
        if not _NETWORK.match(text):
            raise ValueError  # noqa: TRY301 - one refusal for all of them
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        what = f"expected a network such as 10.0.0.0/8 or fd00::/8, found {(found or text)!r}"
        remedy = "write an address, a slash and the length of the prefix; with a port as 10.0.0.0/8:443, [fd00::/8]:443"
        raise ImpossibleValue(what, remedy) from None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        mapped = int(network.network_address) & 0xFFFF_FFFF
        network = ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED.prefixlen))
    return str(network)


def _destination(text: str) -> str:
    cidr, port = place_of(text)
    if cidr == text:
        return _network(text)
    if not 1 <= port <= MAX_PORT:
        raise ImpossibleValue(f"expected ports of 1 to {MAX_PORT}, found {text!r}", "leave it out for any port")
    network = _network(cidr, text)
    return f"[{network}]:{port}" if ":" in network else f"{network}:{port}"


def _path(text: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ImpossibleValue(f"expected UTF-8, found {text!r}", "rename the file") from None
    if not text.startswith("/") or "\0" in text or ARROW in text:
        raise ImpossibleValue(f"expected an absolute path, found {text!r}", "write the path from / on")
    if size > MAX_PATH_BYTES:
        what = f"expected at most {MAX_PATH_BYTES} bytes, found {size}"
        raise ImpossibleValue(what, "the kernel has no longer paths")
    return text


def mode_of(path: str) -> int | None:
    """Mode of a file that is to be an executable, None where there is none. ImpossibleValue: it is no such file."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - Path() would drop a trailing slash, which means something
    except FileNotFoundError:
        return None
    except OSError as error:
        what = f"expected an executable file, but {path} cannot be looked at: {error.strerror}"
        raise ImpossibleValue(what, "correct the path or the permissions") from None
    if not stat.S_ISREG(mode):
        what = f"expected an executable file, found {path}, which is none"
        raise ImpossibleValue(what, "name the file itself")
    return mode


def _executable(text: str) -> str:
    path = _path(text)
    mode = mode_of(path)
    if mode is not None and not mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH):
        what = f"expected an executable file, found {path}, which nobody may execute"
        raise ImpossibleValue(what, "name the program; of a script, its interpreter")
    return os.path.realpath(path)


def _edge(text: str) -> str:
    before, arrow, executed = text.partition(ARROW)
    if not arrow:
        what = f"expected BEFORE -> EXECUTED, two paths, found {text!r}"
        raise ImpossibleValue(what, 'write it as in "/usr/sbin/nginx -> /usr/bin/php-cgi"')
    return f"{_executable(before.strip())}{ARROW}{_executable(executed.strip())}"


def _uid(user: int | str) -> int:
    if isinstance(user, str) and not user.isdecimal():
        try:
            return pwd.getpwnam(user).pw_uid
        except (KeyError, ValueError):
            raise ImpossibleValue(f"there is no user {user!r}", "create it, or write its number") from None
    if not 0 <= int(user) <= MAX_UID:
        raise ImpossibleValue(f"expected user ids of 0 to {MAX_UID}, found {user}", "see `getent passwd`")
    return int(user)
