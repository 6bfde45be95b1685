"""`kinwatch cloud template`: reads the security profile, says the notes, returns or writes the text.

Owns the two files of the command. Refuses to know what a template consists of.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from monitor.cloud.template import make
from monitor.detect.profile import load
from monitor.errors import ConfigInvalid
from monitor.judging.plan import NO_PROFILE, written
from monitor.sinks.text import say

if TYPE_CHECKING:
    from pathlib import Path

    from monitor.cloud.template import Wanted
    from monitor.config import Config

MAX_INLINE_BYTES = 51_200
"""Of a template that is not in a bucket (CloudFormation, TemplateBody)."""


def template(config: Config, wanted: Wanted, output: Path | None) -> str:
    """Write the template to `output`, and return "", or return its text, JSON.

    Notes go to stderr. Raises ConfigInvalid.
    """
    found = written(config)
    document, profile = {}, NO_PROFILE
    if found is not None:
        profile = load(*found)
        document = msgspec.json.decode(found[0].removeprefix(b"\xef\xbb\xbf"))
    made = make(config, wanted, document, profile)
    text = json.dumps(made.document, indent=1) + "\n"  # not wider: its bytes are limited
    for note in made.notes:
        say(note)
    if len(text.encode()) > MAX_INLINE_BYTES:
        say(f"the template has {len(text.encode())} bytes: 'aws cloudformation deploy' needs --s3-bucket for it")
    if output is None:
        return text
    try:
        output.write_text(text)
    except OSError as error:
        raise ConfigInvalid(
            f"command line: --output: {output}: {error.strerror}; name a file that can be written"
        ) from error
    return ""
