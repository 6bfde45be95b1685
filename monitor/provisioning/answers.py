"""The two calls of fleet provisioning: their topics and what the service answers; knows neither MQTT nor files.

Source: AWS IoT Developer Guide, "Device provisioning MQTT API".
"""

from __future__ import annotations

from typing import Final, NamedTuple

from monitor.errors import KinwatchError

CREATE: Final = "$aws/certificates/create-from-csr/json"
REGISTER: Final = "$aws/provisioning-templates/{template}/provision/json"
_TOKEN: Final = "InvalidCertificateOwnershipToken"  # noqa: S105 - the name of an error
_TOO_MANY: Final = 429
_THEIRS: Final = 500


class Rejected(KinwatchError):
    """The service said no."""

    exit_code = 4

    def __init__(self, call: str, status: int, code: str, message: str) -> None:
        super().__init__(f"{call} was rejected: {status} {code}: {message}; {_remedy(status, code)}")
        self.status, self.code = status, code

    @property
    def token_is_void(self) -> bool:
        """The certificate's time is over: another one has to be asked for."""
        return self.code.startswith(_TOKEN)


class Issued(NamedTuple):
    """Answer of CreateCertificateFromCsr."""

    certificate_id: str
    certificate: str
    """PEM."""
    ownership_token: str


class Registered(NamedTuple):
    """Answer of RegisterThing."""

    thing: str
    device_configuration: dict[str, str]


def _remedy(status: int, code: str) -> str:
    if code.startswith(_TOKEN):
        return "another certificate is asked for"
    if status == _TOO_MANY or status >= _THEIRS or code.startswith("Throttl"):
        return "try again later"
    return "look at the template, its role and hook, provisioning.parameters and the policy of the claim certificate"
