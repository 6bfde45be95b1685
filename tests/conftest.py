"""What every test shares: how hypothesis searches.

Owns hypothesis's profile. Refuses to know fixtures: they stand beside the tests that use them.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

LONG = bool(os.environ.get("KINWATCH_LONG"))

settings.register_profile(
    "kinwatch",
    max_examples=1000 if LONG else 100,
    # Time is not judged: machines are busy.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    # The same examples every time where nobody can go on searching from a failure.
    derandomize="CI" in os.environ,
    print_blob=True,
)
settings.load_profile("kinwatch")
