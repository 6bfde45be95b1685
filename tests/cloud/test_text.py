"""YAML without a library: whatever a template holds, a reader of YAML 1.1 gets it back."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from monitor.cloud.text import encode

ODD = [
    "",
    "yes",
    "No",
    "null",
    "~",
    "1",
    "1e3",
    "0x1f",
    "2012-10-17",
    "a: b",
    "a #b",
    "- a",
    "${x}",
    "'",
    '"',
    "\n",
    "😀",
    "ü",
    "=",
    "\x7f",
]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(ODD),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=100) | st.sampled_from(ODD), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=100), values, min_size=1, max_size=4))
def test_what_is_written_is_read(document: dict[str, object]) -> None:
    assert yaml.safe_load(encode(document, "yaml")) == document
    assert json.loads(encode(document, "json")) == document


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_stay_texts(text: str) -> None:
    assert yaml.safe_load(encode({"a": [text], text: {"b": text}}, "yaml")) == {"a": [text], text: {"b": text}}
