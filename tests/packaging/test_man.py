"""The manual page has what the command says of itself, verb by verb and flag by flag.

Owns the comparison with the help that a user sees. Refuses to know how the page is made: it calls the recipe.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _help(*verb: str) -> str:
    command = [sys.executable, "-m", "monitor", *verb, "--help"]
    # Wide, so that no word is broken.
    environment = os.environ | {"COLUMNS": "1000"}
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout


def _verbs(text: str) -> list[str]:
    """The names under VERB or the like, in the help of a command that has others below it."""
    _, _, listed = text.partition("positional arguments:\n")
    block = re.match(r"  [A-Z]+\n((?:    .*\n)*)", listed)
    return re.findall(r"(?m)^ {4}(\S+)(?: |$)", block[1]) if block else []


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, ...], str]:
    """By command line, what --help prints: of kinwatch, of its verbs and of theirs."""
    found: dict[tuple[str, ...], str] = {(): _help()}
    level: list[tuple[str, ...]] = [()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while level := [(*words, verb) for words in level for verb in _verbs(found[words])]:
            found |= dict(zip(level, pool.map(lambda words: _help(*words), level), strict=True))
    return found


@pytest.fixture(scope="module")
def page() -> str:
    """The page, as its reader sees its letters."""
    command = [sys.executable, str(ROOT / "build" / "man.py")]
    source = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.sub(r"\\f[BIR]|\\&", "", source).replace(r"\-", "-").replace(r"\e", "\\")


def test_the_page_has_a_section_for_every_verb_and_no_other(helps: dict[tuple[str, ...], str], page: str) -> None:
    assert {("run",), ("cloud", "apply"), ("provision",)} < helps.keys()
    wanted = {" ".join(("kinwatch", *words)) for words in helps if words}
    assert set(re.findall(r"(?m)^\.SS (.*)$", page)) == wanted


def test_every_flag_that_a_verb_takes_stands_in_its_section(helps: dict[tuple[str, ...], str], page: str) -> None:
    sections = dict(re.findall(r"(?ms)^\.SS (.*?)\n(.*?)(?=^\.S[SH] )", page))
    for words, text in helps.items():
        if not words:
            continue
        section = sections[" ".join(("kinwatch", *words))]
        shown = re.findall(r"(?m)^  (-.*?)(?:  |$)", text)
        assert shown, words
        flags = {flag for line in shown for flag in re.findall(r"(?:^|, )(--?[\w-]+)", line)} - {"-h", "--help"}
        missing = [flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", section)]
        assert not missing, (words, missing)


def test_the_page_tells_the_exit_codes_of_the_help(helps: dict[tuple[str, ...], str], page: str) -> None:
    _, _, codes = helps[()].partition("exit codes:\n")
    assert codes.strip()
    assert [line.strip() for line in codes.splitlines() if line.strip() not in page] == []
