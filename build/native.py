#!/usr/bin/env python3
"""Recipe: ebpf/event.h and monitor/engine/native/* -> monitor/engine/_native.abi3.so, the engine behind cffi.

Owns: the list of headers that Python sees, the C compiler's flags. Refuses to know: what the engine does, wheels.

The compiler is called directly: our files are compiled with every warning an error, cffi's generated file is not ours
and is compiled without; and no setuptools, which would use build/ as its scratch directory.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import os
import shlex
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from cffi import FFI

sys.path.insert(0, str(Path(__file__).resolve().parent))

from recipe import CACHE, ROOT, RecipeFailed, finish, is_current, key_of, run

if TYPE_CHECKING:
    from portable import Target

MODULE = "monitor.engine._native"
NATIVE = ROOT / "monitor" / "engine" / "native"
OUTPUT = ROOT / "monitor" / "engine" / "_native.abi3.so"
GENERATED = CACHE / "native" / "_native.c"

# Read by cffi in this order, and included in this order by the file it generates.
HEADERS = (
    *(ROOT / "ebpf" / "event.h", ROOT / "ebpf" / "net_table.h"),
    *(NATIVE / "engine.h", NATIVE / "loader.h", NATIVE / "device.h", NATIVE / "procevents.h"),
)

INCLUDES = ("-Iebpf", "-Imonitor/engine/native")
# C11 with typeof, and Linux beyond POSIX. Defined as nothing, so that a file may define it the same way again.
LANGUAGE = ("-std=gnu11", "-D_GNU_SOURCE=", "-pthread")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
OPTIMISE = ("-O2", "-D_FORTIFY_SOURCE=2", "-fstack-protector-strong")
SANITISE = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Only PyInit__native is visible, so that nothing in the process can stand in for an engine function.
SHARED = ("-fPIC", "-fvisibility=hidden")
EXPORTS = "{ global: PyInit__native; local: *; };"
# Python 3.11's stable interface: one binary for 3.11 and everything later.
PYTHON = "-DPy_LIMITED_API=0x030B0000"


def sources() -> list[Path]:
    """Every C file of the engine and the loader. Raises RecipeFailed when there is none."""
    found = sorted(NATIVE.glob("*.c"))
    missing = [str(path.relative_to(ROOT)) for path in HEADERS if not path.exists()]
    if not found:
        missing.append(f"{NATIVE.relative_to(ROOT)}/*.c")
    if missing:
        text = f"missing: {', '.join(missing)}: this checkout is not whole"
        raise RecipeFailed(text)
    return found


def generate(scratch: Path) -> Path:
    """Write the C file of the Python module, and return its path: one that is the same in every build, from ROOT."""
    target = scratch / "_native.c"
    ffi = FFI()
    for header in HEADERS:
        ffi.cdef(header.read_text())
    includes = "".join(f'#include "{header.name}"\n' for header in HEADERS)
    ffi.set_source(MODULE, f"#include <stdbool.h>\n#include <stdint.h>\n#include <stddef.h>\n{includes}")
    with contextlib.redirect_stdout(io.StringIO()):  # it reports every file it writes
        ffi.emit_c_code(str(target))
    GENERATED.parent.mkdir(parents=True, exist_ok=True)
    return target.replace(GENERATED).relative_to(ROOT)


def build(output: Path = OUTPUT, *, sanitise: bool = False, target: Target | None = None) -> Path:
    """Compile and link when something changed, and return the module's path. Raises RecipeFailed.

    sanitise: with AddressSanitizer and UndefinedBehaviorSanitizer, for tests; the process must preload libasan.
    target: for another machine, or an older C library; this machine as it is without it.
    """
    files = sources()
    compiler = target.compiler if target else shlex.split(os.environ.get("CC", "cc"))
    base = [*compiler, *LANGUAGE, *(SANITISE if sanitise else OPTIMISE), *SHARED, *INCLUDES]
    if target:
        bpf_flags, python_flags, libraries = target.includes, target.includes, target.libraries
    else:
        bpf_flags = shlex.split(run(["pkg-config", "--cflags", "libbpf"]))
        python_flags = [f"-I{sysconfig.get_paths()['include']}"]
        libraries = shlex.split(run(["pkg-config", "--libs", "libbpf"]))
    # Sanitizers' instrumentation makes gcc warn of what cannot happen, and another compiler has other warnings; the
    # ordinary build has been through it all.
    ours = [*base, *(["-w"] if sanitise or target else WARNINGS), *bpf_flags]
    generated = [*base, PYTHON, *python_flags]
    link = [*compiler, "-shared", "-pthread", *(["-fsanitize=address,undefined"] if sanitise else [])]
    link += ["-Wl,-z,relro,-z,now", "-Wl,--as-needed", *(["-s"] if target else [])]
    inputs = [*NATIVE.glob("*.[ch]"), *HEADERS, *(ROOT / "ebpf").glob("*.h"), Path(__file__).resolve()]
    key = key_of(set(inputs), [ours, generated, link, libraries, [EXPORTS]])
    if is_current(output, key):
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".making-") as name:
        scratch = Path(name)
        module = generate(scratch)
        jobs = [[*ours, "-c", path.relative_to(ROOT), "-o", scratch / f"{path.stem}.o"] for path in files]
        jobs.append([*generated, "-c", module, "-o", scratch / "_native_module.o"])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, jobs))
        made = scratch / output.name
        if target:
            # libbpf, which is linked statically there, declares its functions visible.
            exports = scratch / "exports"
            exports.write_text(EXPORTS)
            link.append(f"-Wl,--version-script={exports}")
        run([*link, *(job[-1] for job in jobs), "-o", made, *libraries])
        if target:
            _check_names(made)
        elif not sanitise:
            _check_symbols(made)
        finish(made, output, key)
    return output


def _check_symbols(module: Path) -> None:
    # A header may declare what no file defines: the linker leaves that to the first user, so ask now.
    try:
        ctypes.CDLL(str(module), mode=os.RTLD_NOW)
    except OSError as error:
        text = f"{OUTPUT.relative_to(ROOT)} does not load: {error}"
        raise RecipeFailed(text) from error


def _check_names(module: Path) -> None:
    # The same for a machine that is not this one: all but Python's symbols must come from a library, with a version.
    lines = run(["llvm-readelf", "--dyn-syms", "--wide", module]).splitlines()
    wanted = [line.split()[-1] if "(" not in line else line.split()[-2] for line in lines if " UND " in line]
    unknown = [name for name in wanted if "@" not in name and not name.startswith(("Py", "_Py"))]
    weak = {line.split()[-1] for line in lines if " WEAK " in line}
    if missing := sorted(set(unknown) - weak - {"UND"}):
        text = f"{OUTPUT.relative_to(ROOT)} needs what no library defines: {', '.join(missing)}"
        raise RecipeFailed(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compile the native engine.")
    parser.add_argument("--sanitise", action="store_true", help="with ASan and UBSan, for tests")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        print(build(arguments.output.resolve(), sanitise=arguments.sanitise).relative_to(ROOT))
    except RecipeFailed as failed:
        sys.exit(f"build/native.py: {failed}")
