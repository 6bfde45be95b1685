"""A conversation with AWS: what is asked, word by word, and what is answered, without a network.

Owns botocore's Stubber for each service, and the API's own model as a second judge of every request, because the
Stubber looks neither at enums nor at patterns nor at most limits. Refuses to know what the program wants.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

import boto3
import botocore.session
from botocore.loaders import create_loader
from botocore.stub import ANY, Stubber

from monitor.cloud.aws import Aws
from tests.cloud.account import ACCOUNT, REGION, request_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.cloud.account import Json

STACK: Final = f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/kinwatch/1"
CHANGES: Final = f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:changeSet/kinwatch/1"
ME: Final = f"arn:aws:iam::{ACCOUNT}:user/me"
OURS: Final = {"kinwatch:profile": "kinwatch"}
WHEN: Final = dt.datetime(2026, 1, 1, 10, tzinfo=dt.UTC)
LONGEST: Final = 100
_LOADER: Final = create_loader()


def session() -> Any:  # noqa: ANN401 - boto3 has no types
    """A session of somebody; models that were read once are not read again."""
    core = botocore.session.Session()
    core.register_component("data_loader", _LOADER)
    return boto3.Session("AKIDEXAMPLE", "secret", region_name=REGION, botocore_session=core)


class _Stubbed(Aws):
    """An account whose clients never reach a network."""

    def __init__(
        self,
        session: Any,  # noqa: ANN401 - boto3 has no types
        *,
        sleep: Callable[[float], None],
        opened: Callable[[str, Any], None],
    ) -> None:
        super().__init__(session, sleep=sleep)
        self._opened = opened

    def client(self, service: str) -> Any:  # noqa: ANN401 - as there
        """A client whose calls are answered by a Stubber."""
        new = service not in self._clients
        client = super().client(service)
        if new:
            self._opened(service, client)
        return client


class Conversation:
    """What will be asked and answered, in the order of each service. `aws` is the account to work with."""

    def __init__(self) -> None:
        self.slept = 0
        self.aws = _Stubbed(session(), sleep=self._sleep, opened=self._opened)
        self.faults: list[str] = []
        self.asked: list[tuple[str, Json]] = []
        self._stubbers: dict[str, Stubber] = {}
        self._events = 0

    def _opened(self, service: str, client: Any) -> None:  # noqa: ANN401 - botocore has no types
        client.meta.events.register("before-parameter-build", self._judge)
        self._stubbers[service] = Stubber(client)
        self._stubbers[service].activate()

    def _stubber(self, service: str) -> Stubber:
        self.aws.client(service)
        return self._stubbers[service]

    def _sleep(self, _seconds: float) -> None:
        self.slept += 1
        assert self.slept < LONGEST, "it waits for ever"

    def _judge(self, params: Json, model: Any, **_: object) -> None:  # noqa: ANN401 - botocore has no types
        service = model.service_model.service_name
        self.asked.append((model.name, params))
        self.faults += request_faults(service, model.name, params)

    def answer(self, service: str, operation: str, answer: Json, asked: Mapping[str, Any] | None = None) -> None:
        """Expect a call with these arguments (None: any), and answer it."""
        self._stubber(service).add_response(operation, answer, None if asked is None else dict(asked))

    def refuse(self, service: str, operation: str, code: str, text: str = "no") -> None:
        """Expect a call, and answer it with an error."""
        self._stubber(service).add_client_error(operation, code, text)

    def end(self) -> None:
        """Everything expected was asked, and nothing that the API's model does not take."""
        for stubber in self._stubbers.values():
            stubber.assert_no_pending_responses()
        assert self.faults == []

    def operations(self) -> list[str]:
        """The calls that were made, in their order."""
        return [name for name, _ in self.asked]

    def arguments(self, operation: str) -> Json:
        """What the last call of an operation asked."""
        return [given for name, given in self.asked if name == operation][-1]

    # What the same things look like wherever they are asked for.

    def me(self) -> None:
        """Who asks."""
        self.answer("sts", "get_caller_identity", {"Account": ACCOUNT, "Arn": ME, "UserId": "me"}, {})

    def stack(  # noqa: PLR0913 - what a stack consists of
        self,
        status: str | None,
        *,
        tags: Mapping[str, str] = OURS,
        name: Any = ANY,  # noqa: ANN401 - ANY has no type
        outputs: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
        description: str = "kinwatch: Device Defender Detect",
        reason: str = "",
    ) -> None:
        """How the stack is; None: there is none."""
        if status is None:
            self.refuse("cloudformation", "describe_stacks", "ValidationError", "Stack with id x does not exist")
            return
        found = {
            "StackName": "kinwatch",
            "StackId": STACK,
            "StackStatus": status,
            "CreationTime": WHEN,
            "Description": description,
            "StackStatusReason": reason,
            "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
            "Outputs": [{"OutputKey": key, "OutputValue": value} for key, value in (outputs or {}).items()],
            "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in (parameters or {}).items()],
        }
        self.answer("cloudformation", "describe_stacks", {"Stacks": [found]}, {"StackName": name})

    def events(self, *events: tuple[str, str, str, str]) -> None:
        """What happened to the stack, oldest first: logical id, type, status, reason; on a page of its own each."""
        pages = []
        for logical, kind, status, reason in events:
            self._events += 1
            pages.append(
                {
                    "StackId": STACK,
                    "EventId": str(self._events),
                    "StackName": "kinwatch",
                    "Timestamp": WHEN,
                    "LogicalResourceId": logical,
                    "PhysicalResourceId": f"physical-{logical}",
                    "ResourceType": kind,
                    "ResourceStatus": status,
                    "ResourceStatusReason": reason,
                }
            )
        self.answer("cloudformation", "describe_stack_events", {"StackEvents": pages[::-1]}, {"StackName": STACK})

    def asked_of_stack(self, operation: str, asked: Mapping[str, str]) -> None:
        """Something is asked for, after a look at what has happened so far."""
        self.events(("kinwatch", "AWS::CloudFormation::Stack", "CREATE_COMPLETE", ""))
        self.answer("cloudformation", operation, {}, asked)

    def happens(self, status: str, *failures: tuple[str, str, str], **more: Any) -> None:  # noqa: ANN401 - as of stack
        """Something is done to the stack: not yet begun, under way, and its end; `failures`: logical id, type, why."""
        kind = "UPDATE" if "UPDATE" in status else "DELETE" if status.startswith("DELETE") else "CREATE"
        self.stack("REVIEW_IN_PROGRESS" if kind == "CREATE" else "CREATE_COMPLETE")  # what was asked for shows late
        self.events()
        self.stack(f"{kind}_IN_PROGRESS")
        self.events(("kinwatch", "AWS::CloudFormation::Stack", f"{kind}_IN_PROGRESS", "User Initiated"))
        self.stack(status, name=STACK, **more)
        failed = [(logical, what, f"{kind}_FAILED", why) for logical, what, why in failures]
        done = ("AlarmTopic", "AWS::SNS::Topic", f"{kind}_COMPLETE", "")
        self.events(done, *failed, ("kinwatch", "AWS::CloudFormation::Stack", status, ""))

    def resources(self, *found: tuple[str, str, str]) -> None:
        """What is in the stack: logical id, type, physical id."""
        summaries = [
            {
                "LogicalResourceId": logical,
                "ResourceType": kind,
                "PhysicalResourceId": physical,
                "ResourceStatus": "CREATE_COMPLETE",
                "LastUpdatedTimestamp": WHEN,
            }
            for logical, kind, physical in found
        ]
        self.answer(
            "cloudformation", "list_stack_resources", {"StackResourceSummaries": summaries}, {"StackName": STACK}
        )

    def account(self, metrics: tuple[str, ...] = ("other",), profiles: tuple[str, ...] = ("other",)) -> None:
        """An account that would take the template of a new profile: all that is asked before, without the stack."""
        self.answer(
            "iot",
            "list_security_profiles",
            {"securityProfileIdentifiers": [{"name": one, "arn": f"arn:{one}"} for one in profiles]},
            {},
        )
        self.answer("iot", "list_custom_metrics", {"metricNames": list(metrics)}, {})

    def free(self, *, profile: bool = True) -> None:
        """Behaviors are valid, names are free, the target has no other profile."""
        for operation in ("describe_security_profile", "describe_thing_group", "describe_mitigation_action"):
            self.refuse("iot", operation, "ResourceNotFoundException")
        self.refuse("iot", "get_policy", "ResourceNotFoundException")
        if profile:
            self.answer(
                "iot",
                "list_security_profiles_for_target",
                {"securityProfileTargetMappings": []},
                {"securityProfileTargetArn": f"arn:aws:iot:{REGION}:{ACCOUNT}:all/things"},
            )
