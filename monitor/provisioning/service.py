"""The two calls of AWS IoT fleet provisioning over a connection that stands, with awsiotsdk's own client for them.

Owns what their answers mean. Refuses to know keys and files. Source: AWS IoT Developer Guide, "Device provisioning MQTT
API": accepted and rejected answers on topics of their own; a rejection has statusCode, errorCode and errorMessage.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from awscrt.mqtt_request_response import ClientOptions
from awsiot import V2ServiceException
from awsiot.iotidentity import CreateCertificateFromCsrRequest, IotIdentityClientV2, RegisterThingRequest

from monitor.defender.link import Unreachable
from monitor.provisioning.answers import CREATE, REGISTER, Issued, Registered, Rejected

if TYPE_CHECKING:
    from monitor.defender.publish import MqttLink

ANSWER_S: Final = 30
"""Longest wait for an answer, subscribing included."""


class Service:
    """Calls over one link, which must be connected."""

    def __init__(self, link: MqttLink) -> None:
        # Two topics of answers each; one call at a time.
        options = ClientOptions(4, 1)
        options.operation_timeout_in_seconds = ANSWER_S
        self._client = IotIdentityClientV2(link.client, options)

    async def create(self, request: str) -> Issued:
        """Have a certificate issued; it is not active yet. Raises Rejected, Unreachable."""
        wanted = CreateCertificateFromCsrRequest(certificate_signing_request=request)
        answer = await _answer("CreateCertificateFromCsr", CREATE, self._client.create_certificate_from_csr(wanted))
        parts: list[Any] = [answer.certificate_id, answer.certificate_pem, answer.certificate_ownership_token]
        if not all(isinstance(part, str) and part for part in parts):
            raise Unreachable("CreateCertificateFromCsr: an answer without certificate, its id or its token")
        return Issued(*parts)

    async def register(self, template: str, ownership_token: str, parameters: dict[str, str]) -> Registered:
        """Have the thing and the certificate put together as the template says. Raises Rejected, Unreachable."""
        wanted = RegisterThingRequest(
            template_name=template, certificate_ownership_token=ownership_token, parameters=parameters
        )
        place = REGISTER.format(template=template)
        answer = await _answer("RegisterThing", place, self._client.register_thing(wanted))
        if not isinstance(answer.thing_name, str) or not answer.thing_name:
            raise Unreachable("RegisterThing: an answer without a thing's name; does the template make a thing?")
        configuration = answer.device_configuration
        texts = {key: str(value) for key, value in configuration.items()} if isinstance(configuration, dict) else {}
        return Registered(answer.thing_name, texts)


async def _answer(call: str, topic: str, future: Any) -> Any:  # noqa: ANN401 - untyped
    try:
        return await asyncio.wrap_future(future)
    except V2ServiceException as error:
        said = error.modeled_error
        if said is not None:
            raise Rejected(call, said.status_code or 0, said.error_code or "", said.error_message or "") from error
        inner = error.inner_error
        why = getattr(inner, "name", "") or str(inner)
        places = f"publish {topic}, subscribe and receive {topic}/accepted and /rejected"
        raise Unreachable(f"{call}: no answer ({why}); the policy must allow to {places}") from error
