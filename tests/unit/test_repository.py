"""The habits of the repository that no tool keeps: sizes, names, traps of its top level.

Owns the limits. Refuses to know what the files are about.
"""

from __future__ import annotations

import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

import monitor

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 600
CODE = {".py", ".c", ".h", ".sh", ".pyi"}


@cache
def _files() -> tuple[Path, ...]:
    """Every file that is, or would be, in the repository."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = tuple(ROOT / name for name in listed.splitlines() if (ROOT / name).is_file())
    assert ROOT / "pyproject.toml" in found
    return found


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")


def test_no_file_of_code_outgrows_a_reader() -> None:
    lines = {path: _text(path).count("\n") for path in _files() if path.suffix in CODE}
    assert {str(path): count for path, count in lines.items() if count > MOST_LINES} == {}


def test_build_is_no_package_and_is_not_ignored() -> None:
    assert not (ROOT / "build" / "__init__.py").exists(), "`python -m build` would run this folder"
    recipes = {path.name for path in _files() if path.parent == ROOT / "build"}
    assert {"hook.py", "ebpf.py", "native.py"} <= recipes


def test_what_is_built_is_ignored() -> None:
    made = [
        "monitor/engine/_native.abi3.so",
        "monitor/capture/kinwatch.bpf.o",
        ".venv/bin/python",
        "dist/a.whl",
        ".cache/a",
    ]
    command = ["git", "-c", f"safe.directory={ROOT}", "check-ignore", *made]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert ignored.splitlines() == made


def test_a_file_with_an_interpreter_line_can_be_executed_and_no_other() -> None:
    for path in _files():
        begins = path.read_bytes()[:2] == b"#!"
        executable = bool(path.stat().st_mode & 0o111)
        assert begins == executable, f"{path.relative_to(ROOT)}: interpreter line {begins}, executable {executable}"


def test_nothing_names_a_path_of_the_machine_it_was_written_on() -> None:
    homes = ("/" + "home/", "/" + "root/", "/" + "work/", f"{ROOT}/")
    for path in _files():
        text = _text(path)
        for home in homes:
            assert home not in text, f"{path.relative_to(ROOT)} names {home}"


def test_no_room_is_called_after_nothing() -> None:
    empty = {"helper", "helpers", "util", "utils", "manager", "common", "misc"}
    assert not [path for path in _files() if path.stem in empty]


@pytest.mark.parametrize("folder", ["monitor", "build", "tests"])
def test_every_python_file_says_what_it_owns_and_defers_its_annotations(folder: str) -> None:
    files = [path for path in _files() if path.suffix == ".py" and path.is_relative_to(ROOT / folder)]
    assert files
    for path in files:
        text = _text(path)
        after_interpreter = text.split("\n", 1)[1] if text.startswith("#!") else text
        assert after_interpreter.startswith(('"""', 'r"""')), f"{path.relative_to(ROOT)} begins with its docstring"
        assert "from __future__ import annotations" in text, str(path.relative_to(ROOT))


def test_every_c_file_names_its_licence_first() -> None:
    for path in _files():
        if path.suffix in {".c", ".h"} and path.name != "event.h":
            assert _text(path).startswith(("/* SPDX-License-Identifier: ", "// SPDX-License-Identifier: ")), str(
                path.relative_to(ROOT)
            )


def test_the_wire_has_no_preprocessor_line() -> None:
    native = [f"monitor/engine/native/{name}.h" for name in ("engine", "loader", "device")]
    for name in ("ebpf/event.h", *native):
        lines = _text(ROOT / name).splitlines()
        assert not [line for line in lines if line.startswith("#")], f"{name}: cffi's parser refuses it"


def test_the_changelog_knows_this_version() -> None:
    assert f"\n## {monitor.__version__}" in _text(ROOT / "CHANGELOG.md")


def test_every_rule_that_ruff_lets_pass_has_its_reason() -> None:
    text = _text(ROOT / "pyproject.toml")
    lint = tomllib.loads(text)["tool"]["ruff"]["lint"]
    rules = [*lint["ignore"], *(rule for rules in lint["per-file-ignores"].values() for rule in rules)]
    for rule in rules:
        lines = [line for line in text.splitlines() if line.strip().startswith(f'"{rule}"')]
        assert lines, rule
        assert all("# " in line for line in lines), f"{rule} needs a reason beside it"
