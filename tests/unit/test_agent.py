"""A reload whose outcome somebody waits for is told of that reload, whatever the capture is still busy with.

Owns the agent's side of it, without its parts. Refuses to know the rest of the agent (tests/contract, tests/mqtt).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from monitor.agent import Agent
from monitor.config import Config
from monitor.errors import CaptureUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from monitor.watch import Watch


class Full:
    """A capture without room."""

    def apply(self, watches: Sequence[Watch]) -> None:  # noqa: ARG002
        """Refuse them."""
        raise CaptureUnavailable("the kernel has no room")

    def commit(self) -> None:
        """Nothing was read."""


class Free(Full):
    """A capture with room."""

    def apply(self, watches: Sequence[Watch]) -> None:
        """Take them."""


def test_what_is_tried_has_the_outcome_of_its_own_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier, tried = Config(), Config()
    agent = Agent.__new__(Agent)

    def reload() -> str:
        agent._config = tried
        return ""

    def takes(config: Config, capture: Full) -> None:
        monkeypatch.setattr(agent, "_capture", capture, raising=False)
        agent._change_watches(config)

    async def scenario() -> str:
        agent._loop, agent._taken, agent._config = asyncio.get_running_loop(), asyncio.Event(), earlier
        monkeypatch.setattr(agent, "_reload", reload)
        monkeypatch.setattr(agent, "_pump", lambda: None)
        trying = asyncio.create_task(agent._try(None))
        await asyncio.sleep(0)
        takes(earlier, Free())  # of a SIGHUP right before
        done, _ = await asyncio.wait([trying], timeout=0.05)
        assert not done
        takes(tried, Full())
        async with asyncio.timeout(30):
            return await trying

    assert asyncio.run(scenario()) == "the kernel has no room"
