"""The door to AWS: calls, pages of answers, retries; and every failure as one sentence.

Owns boto3, which nothing else of this program imports, and only when a step asks AWS. Refuses to know what is asked
for.
"""

# ruff: noqa: PLC0415 - boto3 costs time, and only some have it

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from monitor import __version__
from monitor.cloud.reasons import DENIALS, explain, no_detect
from monitor.errors import CloudRefused, ConfigInvalid
from monitor.sinks.text import safe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from monitor.cloud.parts import Json

ATTEMPTS: Final = 5
"""Of one call, in botocore's standard retry mode: throttling, failures of AWS, broken connections."""
_CONNECT_S: Final = 10
_READ_S: Final = 60
_SIGN_IN: Final = "sign in ('aws configure', 'aws sso login'), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_UNREACHABLE: Final = "see that this machine reaches the internet, and --region, HTTPS_PROXY and AWS_ENDPOINT_URL"
_LOCAL: Final[dict[str, str]] = {
    "NoCredentialsError": f"there are no credentials: {_SIGN_IN}",
    "PartialCredentialsError": f"the credentials are not complete: {_SIGN_IN}",
    "CredentialRetrievalError": f"the credentials cannot be had: {_SIGN_IN}",
    "MetadataRetrievalError": f"the credentials cannot be had: {_SIGN_IN}",
    "SSOError": "the session has expired: 'aws sso login', then repeat the command",
    "SSOTokenLoadError": "there is no session: 'aws sso login', then repeat the command",
    "UnauthorizedSSOTokenError": "the session has expired: 'aws sso login', then repeat the command",
    "TokenRetrievalError": "the session has expired: 'aws sso login', then repeat the command",
    "LoginRefreshRequired": "the session has expired: 'aws login', then repeat the command",
    "NoAuthTokenError": f"there is no session: {_SIGN_IN}",
    "NoRegionError": "no region is set: give --region, or set AWS_REGION",
    "InvalidRegionError": "that is no region: see --region, AWS_REGION and ~/.aws/config",
    "ProfileNotFound": "see --aws-profile, AWS_PROFILE and ~/.aws/config",
    "ConfigParseError": "mend that file",
    "ConfigNotFound": "see AWS_CONFIG_FILE",
    "InvalidConfigError": "mend ~/.aws/config",
    "EndpointConnectionError": _UNREACHABLE,
    "EndpointProviderError": _UNREACHABLE,
    "ConnectTimeoutError": _UNREACHABLE,
    "ReadTimeoutError": "AWS did not answer in time: run the command again",
    "ConnectionClosedError": "the connection broke: run the command again",
    "ProxyConnectionError": "see HTTPS_PROXY",
    "SSLError": "the certificate is not one that is trusted here: see AWS_CA_BUNDLE, and the clock of this machine",
    "HTTPClientError": _UNREACHABLE,
    "ConnectionError": _UNREACHABLE,
    "ServiceNotInRegionError": "see --region",
    "UnknownRegionError": "see --region, AWS_REGION and ~/.aws/config",
    "BaseEndpointResolverError": "see --region",
    "LoginError": "sign in again: 'aws login'",
    "UnknownCredentialError": "mend ~/.aws/config",
    "RefreshWithMFAUnsupportedError": "get a session first: 'aws sts get-session-token'",
    "MissingDependencyException": "install what it names, or sign in another way",
    "UnknownServiceError": "this boto3 is too old: update it",
    "DataNotFoundError": "this boto3 is damaged: install it again",
}
"""What to do about a failure on this side, by the name of botocore's exception or of one that it inherits from."""
_SETTINGS: Final = "see the variables AWS_... and ~/.aws/config"
BUGS: Final = frozenset(
    (
        *("ParamValidationError", "ValidationError", "StubResponseError", "UnknownClientMethodError"),
        *("OperationNotPageableError", "PaginationError", "MissingParametersError"),
    )
)
"""Failures that only a wrong call makes: they are not explained."""


class Aws:
    """An account in a region, by its API."""

    def __init__(self, session: Any, *, sleep: Callable[[float], None] = time.sleep) -> None:  # noqa: ANN401 - untyped
        self._session = session
        self._clients: dict[str, Any] = {}
        self.sleep = sleep

    @property
    def region(self) -> str:
        """The region that everything happens in."""
        name: str = self._session.region_name
        return name

    def client(self, service: str) -> Any:  # noqa: ANN401 - boto3 has no types
        """The client of a service, always the same one. Raises CloudRefused."""
        if service not in self._clients:
            from botocore.config import Config

            settings = Config(
                connect_timeout=_CONNECT_S,
                read_timeout=_READ_S,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                user_agent_extra=f"kinwatch/{__version__}",
            )
            self._clients[service] = self._explained(
                service, "", lambda: self._session.client(service, config=settings)
            )
        return self._clients[service]

    def call(self, service: str, operation: str, **arguments: Any) -> Json:  # noqa: ANN401 - as the API has them
        """Call an operation, named as in the API reference. Raises CloudRefused: why, and what to do."""
        from botocore import xform_name

        method = getattr(self.client(service), xform_name(operation))
        answer: Json = self._explained(service, operation, lambda: method(**arguments))
        return answer

    def pages(self, service: str, operation: str, key: str, **arguments: Any) -> Iterator[Any]:  # noqa: ANN401
        """Yield members of the list `key`, of every page that the operation has. Raises CloudRefused."""
        from botocore import xform_name

        pages = iter(self.client(service).get_paginator(xform_name(operation)).paginate(**arguments))
        while True:
            page = self._explained(service, operation, lambda: next(pages, None))
            if page is None:
                return
            yield from page.get(key, ())

    @staticmethod
    def _explained(service: str, operation: str, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - untyped
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            return call()
        except ResponseParserError as error:
            raise CloudRefused(
                f"AWS: {service}:{operation}: what answers there is not AWS; see HTTPS_PROXY and AWS_ENDPOINT_URL",
                code=type(error).__name__,
            ) from error
        except ClientError as error:
            found = error.response.get("Error", {})
            code, text = str(found.get("Code", "")), safe(str(found.get("Message", "")))
            said = explain(code, text, service, error.operation_name or operation)
            raise CloudRefused(said, code=code, denied=code in DENIALS, no_detect=no_detect(text)) from error
        except BotoCoreError as error:
            if next((name in BUGS for name in _ancestry(error) if name in BUGS or name in _LOCAL), False):
                raise
            raise CloudRefused(local(error), code=type(error).__name__) from error


def local(error: BaseException) -> str:
    """What a failure on this side means: what botocore says, and what to do."""
    remedy = next((_LOCAL[name] for name in _ancestry(error) if name in _LOCAL), _SETTINGS)
    return f"AWS: {' '.join(safe(str(error)).split()).rstrip('.')}; {remedy}"


def _ancestry(error: BaseException) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def connect(step: str, region: str | None, profile: str | None) -> Aws:
    """Open the account that flags, environment and ~/.aws name; nothing is sent yet.

    Raises ConfigInvalid: boto3 is missing; CloudRefused: there is no such profile, or no region.
    """
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, NoRegionError
    except ImportError as error:
        what = f"kinwatch cloud {step}: the library {error.name} is missing"
        remedy = f"install it with '{sys.executable} -m pip install boto3'"
        raise ConfigInvalid(f"{what}; {remedy}, or deploy what 'kinwatch cloud template' writes") from error
    try:
        # As the AWS CLI does; boto3 itself knows AWS_DEFAULT_REGION alone.
        session = boto3.Session(profile_name=profile, region_name=region or os.environ.get("AWS_REGION") or None)
        if not session.region_name:
            raise NoRegionError
    except BotoCoreError as error:
        raise CloudRefused(local(error), code=type(error).__name__) from error
    return Aws(session)
