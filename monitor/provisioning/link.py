"""A link that gets itself a certificate: the first one with the claim, the next one in time, the old one if need be.

Owns which generation of the identity is connected. Refuses to know what is published, and how a certificate is got.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Final

from monitor.defender.connection import connection_of
from monitor.defender.link import Unreachable
from monitor.defender.publish import MqttLink
from monitor.errors import AlreadyRunning, ConfigInvalid, KinwatchError
from monitor.provisioning.connect import STOP_S, connected
from monitor.provisioning.flow import provision
from monitor.provisioning.identity import Identities, claim_of, due_s
from monitor.provisioning.service import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from monitor.defender.link import Listener
    from monitor.provisioning.identity import Generation
    from monitor.schema import Defender, Provisioning

TRY_S: Final = 60.0
"""A new certificate has this long to be taken by the broker, while there is an old one."""
AGAIN_S: Final = 3600.0
"""After that the old one serves this long before the new one is tried again."""
MOST_REFUSALS: Final = 3
"""Then the new one is given up, and another one is asked for."""
BACK_OFF_S: Final = (2.0, 3600.0)
"""First and longest wait after an attempt at provisioning that failed; random within, doubled each time."""
LOOK_S: Final = 3600.0
"""From one look at the certificate's dates to the next: the clock may be set meanwhile. As long as that the only
certificate there is has to be taken by the broker before they are looked at again."""


class ProvisionedLink:
    """A Link (monitor.defender.link) for a device that is provisioned."""

    def __init__(
        self,
        defender: Defender,
        provisioning: Provisioning,
        state_dir: str,
        identified: Callable[[Defender], None],
        say: Callable[[str], None],
    ) -> None:
        """`identified(settings)`: told who the device is, before the listener hears of a connection as that."""
        self._defender, self._provisioning, self._say = defender, provisioning, say
        self._identified = identified
        self._identities = Identities(state_dir)
        self._listener: Listener | None = None
        self._link: MqttLink | None = None
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stop_s = STOP_S

    # -------- the Link --------

    def start(self, listener: Listener) -> None:
        """Get a certificate if there is none, connect with it, and so on until `stop`."""
        self._listener = listener
        self._task = asyncio.get_running_loop().create_task(self._live())

    def publish(self, topic: str, payload: bytes) -> asyncio.Future[None]:
        """As the link does that is there now."""
        if self._link is not None:
            return self._link.publish(topic, payload)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_exception(Unreachable("the device has no certificate yet"))
        return done

    async def subscribe(self, filters: Sequence[str]) -> None:
        """As the link does that is there now."""
        if self._link is None:
            raise Unreachable("the device has no certificate yet")
        await self._link.subscribe(filters)

    async def stop(self, timeout_s: float) -> None:
        """Disconnect; what provisioning has reached is in its journal."""
        self._stop_s, self._listener = timeout_s, None
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # -------- the listener of the link that is there now --------

    def connected(self, *, resumed: bool) -> None:
        """Pass it on."""
        self._up.set()
        if self._listener is not None:
            self._listener.connected(resumed=resumed)

    def disconnected(self, why: str) -> None:
        """Pass it on."""
        self._up.clear()
        if self._listener is not None:
            self._listener.disconnected(why)

    def received(self, topic: str, payload: bytes) -> None:
        """Pass it on."""
        if self._listener is not None:
            self._listener.received(topic, payload)

    # -------- which generation --------

    async def _live(self) -> None:
        back_off_s = BACK_OFF_S[0]
        while True:
            try:
                with self._identities.held():
                    while True:
                        await self._serve()
                        back_off_s = BACK_OFF_S[0]
            except AlreadyRunning as error:
                self.disconnected(str(error))
                await asyncio.sleep(BACK_OFF_S[0])
            except Exception as error:  # noqa: BLE001 - a full disk, a damaged file: it may get better, and is said
                self.disconnected(str(error) if isinstance(error, KinwatchError) else repr(error))
                await asyncio.sleep(back_off_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                back_off_s = min(2 * back_off_s, BACK_OFF_S[1])

    async def _serve(self) -> None:
        """One stretch: until there is another generation to use."""
        generation = self._identities.newest()
        if generation is None:
            await self._claim()
            return
        before = self._identities.before(generation)
        try:
            async with self._linked(generation) as link:
                ended = generation.validity().not_after_s <= time.time()  # nobody would take it
                taken = generation.state.step == "confirmed"
                taken = taken or (not ended and await self._taken(LOOK_S if before is None else TRY_S))
                if taken:
                    await self._confirm(generation)
                if taken or ended:
                    await self._replaced(generation, link)
                    return
        except ConfigInvalid:
            if before is None:
                raise
        if before is not None:
            await self._go_back(generation, before)

    async def _confirm(self, generation: Generation) -> None:
        new = generation.state.step == "registered"
        try:
            await asyncio.to_thread(self._identities.confirm, generation, self._defender.auth)
        except (KinwatchError, OSError) as error:  # the connection stands: it is tried again with the next start
            self._say(f"the certificate before this one cannot be removed: {error}")
        if new:
            self._say(f"connected with its own certificate, {generation.state.certificate_id[:16]}")

    async def _go_back(self, generation: Generation, before: Generation) -> None:
        """The broker did not take a new certificate: the one before serves, if the broker takes that."""
        async with self._linked(before):
            if not await self._taken(TRY_S):
                return  # the network is away: nothing is known about the new one
            refusals = generation.state.refusals + 1
            generation.note(refusals=refusals)
            if refusals >= MOST_REFUSALS:
                try:
                    await asyncio.to_thread(self._identities.remove, generation, self._defender.auth)
                    self._say(
                        "the broker did not take the new certificate; it is given up, and another one is asked for"
                    )
                except (KinwatchError, OSError) as error:  # the old one serves on
                    self._say(f"the new certificate, which the broker did not take, cannot be removed: {error}")
            else:
                self._say(f"the broker does not take the new certificate; the old one serves for {AGAIN_S:.0f} s more")
            await asyncio.sleep(AGAIN_S)

    async def _taken(self, within_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._up.wait()
        return self._up.is_set()

    @contextlib.asynccontextmanager
    async def _linked(self, generation: Generation) -> AsyncIterator[MqttLink]:
        settings = generation.applied(self._defender)
        self._identified(settings)
        link = MqttLink(connection_of(settings))
        link.start(self)
        self._link = link
        try:
            yield link
        finally:
            self._link = None
            if self._up.is_set():
                self.disconnected("another certificate is used from now on")
            await link.stop(self._stop_s)

    # -------- another one --------

    async def _claim(self) -> None:
        """The first certificate."""
        async with connected(claim_of(self._defender, self._provisioning)) as link:
            made = await self._provision(link)
        self._say(f"provisioned as {made.state.thing}, certificate {made.state.certificate_id[:16]}")

    async def _replaced(self, generation: Generation, link: MqttLink) -> None:
        """Wait until a certificate is to be replaced, and have another one made; returns when there is one."""
        back_off_s = BACK_OFF_S[0]
        while True:
            validity = generation.validity()
            left_s = min(LOOK_S, due_s(validity, self._provisioning) - time.time())
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            try:
                if time.time() < validity.not_after_s:
                    await self._up.wait()
                    made = await self._provision(link)
                else:
                    async with connected(claim_of(self._defender, self._provisioning)) as claim:
                        made = await self._provision(claim)
            except KinwatchError as error:
                self._say(f"no new certificate came: {error}")
                await asyncio.sleep(back_off_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                back_off_s = min(2 * back_off_s, BACK_OFF_S[1])
                continue
            self._say(f"a new certificate, {made.state.certificate_id[:16]}, replaces the one that ends")
            return

    async def _provision(self, link: MqttLink) -> Generation:
        service = Service(link)
        return await provision(self._identities, self._provisioning, self._defender.auth, service, time.time)
