"""Whatever AWS or the way to it answers is told in one sentence with what to do about it; nothing is a traceback.

Owns the comparison with the errors that botocore's models and botocore itself know. Refuses to know what was asked.
"""

from __future__ import annotations

import http.server
import inspect
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.exceptions
import pytest

from monitor import cli, verbs
from monitor.cloud import aws
from monitor.cloud.aws import BUGS, connect, local
from monitor.cloud.reasons import NO_DETECT, REMEDIES, explain, no_detect
from monitor.errors import CloudRefused
from tests.cloud.account import REGION, service
from tests.cloud.conversation import Conversation

if TYPE_CHECKING:
    from collections.abc import Iterator

APPLY = ("cloud", "apply", "--watch", "myapp", "--yes")
CALL = re.compile(r"""(?:call|pages)\(\s*(?:"(\w+)"|_?(IOT|SERVICE)),\s*"(\w+)\"""")
SERVICES = {"IOT": "iot", "SERVICE": "cloudformation"}
COMMON = (  # not in the models: what any call of AWS may answer
    *("AccessDenied", "AccessDeniedException", "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId"),
    *("SignatureDoesNotMatch", "UnrecognizedClientException", "Throttling", "ThrottlingException", "ValidationError"),
    *("RequestExpired", "OptInRequired", "InternalFailure", "ServiceUnavailable", "MissingAuthenticationToken"),
    *("IncompleteSignature", "RequestLimitExceeded", "UnauthorizedOperation"),
)


def calls() -> set[tuple[str, str]]:
    """Every operation that the program calls, by service, as its text has them."""
    found: set[tuple[str, str]] = set()
    for path in Path(aws.__file__).parent.glob("*.py"):
        for literal, name, operation in CALL.findall(path.read_text()):
            found.add((literal or SERVICES[name], operation))
        if path.name == "check.py":
            found |= {("iot", one) for one in re.findall(r'"((?:Describe|Get)[A-Z]\w+)"', path.read_text())}
    return found - {("iot", "GetCallerIdentity")}


def test_the_calls_of_the_program_are_known() -> None:
    found = calls()
    assert len(found) > 25
    assert {("cloudformation", "ExecuteChangeSet"), ("iot", "StartDetectMitigationActionsTask")} <= found
    assert {name for name, operation in found if operation in service(name).operation_names} >= {"iot", "s3", "sts"}
    assert [one for one in found if one[1] not in service(one[0]).operation_names] == []


def test_the_page_names_each_permission_that_a_call_needs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cloud.md").read_text()
    asked = {(name, operation) for name, operation in calls() if name not in {"cloudformation", "sts"}}
    others = {f"`{name}:{operation}`" for name, operation in asked if not operation.startswith(("List", "Describe"))}
    assert len(others) > 5
    assert {one for one in others if one not in page} == set()


@pytest.mark.parametrize(("name", "operation"), sorted(calls()))
def test_every_error_that_a_call_has_is_explained(name: str, operation: str) -> None:
    model = service(name).operation_model(operation)
    codes = {shape.metadata.get("error", {}).get("code", shape.name) for shape in model.error_shapes}
    codes |= {shape.name for shape in model.error_shapes}
    assert {code for code in (*codes, *COMMON) if code not in REMEDIES} == set()


def test_what_to_do_is_one_clause() -> None:
    assert [remedy for remedy in (*REMEDIES.values(), NO_DETECT) if "; " in remedy or remedy.endswith(".")] == []


def test_a_refusal_names_the_permission_that_is_missing() -> None:
    text = "User: arn:aws:iam::1:user/me is not authorized to perform: iam:PassRole on resource: arn:aws:iam::1:role/x"
    said = explain("AccessDenied", text, "cloudformation", "CreateChangeSet")
    assert said.endswith("; allow your user or role iam:PassRole")
    assert explain("AccessDenied", "no", "iot", "GetPolicy").endswith("; allow your user or role iot:GetPolicy")


def test_words_that_say_more_than_the_code_are_listened_to() -> None:
    said = explain("ValidationError", "Stack [k] cannot be deleted while TerminationProtection is enabled", "c", "D")
    assert said.endswith("; switch the termination protection of the stack off first")
    said = explain("ValidationError", "Stack k is in UPDATE_IN_PROGRESS state and can not be updated.", "c", "D")
    assert "somebody else is changing" in said


def test_words_about_detect_are_told_from_others() -> None:
    for text in (
        "The IoT Device Defender detect feature is no longer available to new customers",
        "Detect is not available in this account, see feature availability",
        "This operation is not available to new customers.",
        "Device Defender Detect is not enabled for account 1",
    ):
        assert no_detect(text), text
    for text in (
        "User is not authorized to perform: iot:ListCustomMetrics",
        "Service not available",
        "Cannot detect the region",
        "Rate exceeded",
        "Invalid request: metric is not supported",
    ):
        assert not no_detect(text), text


def test_every_failure_on_this_side_is_explained_or_a_bug() -> None:
    members = [kind for _, kind in inspect.getmembers(botocore.exceptions, inspect.isclass)]
    kinds: list[Any] = [kind for kind in members if issubclass(kind, botocore.exceptions.BotoCoreError)]
    assert len(kinds) > 50
    for kind in kinds:
        if not BUGS.isdisjoint(one.__name__ for one in kind.__mro__):
            continue
        error: BaseException = kind.__new__(kind)
        BaseException.__init__(error, f"it is {kind.__name__}")
        assert re.fullmatch(r"AWS: it is \w+; .{8,}", local(error)), kind


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NoCredentialsError", "there are no credentials"),
        ("NoRegionError", "--region"),
        ("EndpointConnectionError", "reaches the internet"),
        ("ConnectTimeoutError", "reaches the internet"),
        ("SSLError", "AWS_CA_BUNDLE"),
        ("ProfileNotFound", "--aws-profile"),
        ("SSOTokenLoadError", "aws sso login"),
        ("UnauthorizedSSOTokenError", "aws sso login"),
    ],
)
def test_failures_that_everybody_has_once_say_what_to_do(name: str, said: str) -> None:
    error = getattr(botocore.exceptions, name)(
        endpoint_url="x", error="x", profile="x", retries=1, remaining_seconds=1, error_msg="x"
    )
    assert said in local(error)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command says that AWS refuses, in its one line."""
    assert cli.main(argv) == 4
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


def test_without_a_region_and_without_credentials_the_way_is_told(
    nobody: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "give --region, or set AWS_REGION" in refused(capsys, *APPLY)
    assert "there are no credentials" in refused(capsys, *APPLY, "--region", REGION)
    assert "see --aws-profile" in refused(capsys, *APPLY, "--aws-profile", "nobody")
    assert "that is no region" in refused(capsys, *APPLY, "--region", "not a region")
    nobody.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    nobody.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    assert "not complete" in refused(capsys, *APPLY, "--region", REGION)


def test_the_region_is_where_the_command_line_of_aws_finds_it(nobody: pytest.MonkeyPatch) -> None:
    nobody.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert connect("apply", None, None).region == "eu-west-1"
    nobody.setenv("AWS_REGION", "eu-west-2")
    assert connect("apply", None, None).region == "eu-west-2"
    assert connect("apply", "eu-west-3", None).region == "eu-west-3"


def test_calls_are_tried_five_times_in_the_standard_mode(nobody: pytest.MonkeyPatch) -> None:
    nobody.setenv("AWS_RETRY_MODE", "legacy")
    client = connect("apply", REGION, None).client("sts")
    assert client.meta.config.retries == {"mode": "standard", "total_max_attempts": 5}


def test_where_nobody_listens_the_way_is_told(nobody: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    nobody.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    nobody.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    nobody.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    nobody.setattr(aws, "ATTEMPTS", 1)
    assert "see that this machine reaches the internet" in refused(capsys, *APPLY, "--region", REGION)


def test_without_boto3_it_is_said_what_to_install(
    nobody: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody.setitem(sys.modules, "boto3", None)
    assert cli.main(APPLY) == verbs.USAGE
    err = capsys.readouterr().err
    assert f"kinwatch cloud apply: the library boto3 is missing; install it with '{sys.executable} -m pip" in err


@pytest.mark.usefixtures("throttling")
@pytest.mark.parametrize("status", [200, 400])
def test_a_proxy_that_answers_for_aws_is_told(
    nobody: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    nobody.setattr(Throttling, "page", (status, b"<html><p>Sign in to the guest network</html>"))
    nobody.setattr(aws, "ATTEMPTS", 1)
    assert "what answers there is not AWS; see HTTPS_PROXY and AWS_ENDPOINT_URL" in refused(
        capsys, *APPLY, "--region", REGION
    )


class Throttling(http.server.BaseHTTPRequestHandler):
    """An AWS that answers DescribeStacks, after it was asked too often; or a page of somebody else."""

    asked = 0
    times = 1
    page: tuple[int, bytes] | None = None

    def do_POST(self) -> None:
        """Refuse the first calls."""
        self.rfile.read(int(self.headers["Content-Length"]))
        Throttling.asked += 1
        body = b"<ErrorResponse><Error><Code>Throttling</Code><Message>Rate exceeded</Message></Error></ErrorResponse>"
        if Throttling.asked > Throttling.times:
            answer = "<DescribeStacksResult><Stacks/></DescribeStacksResult>"
            body = f"<DescribeStacksResponse>{answer}</DescribeStacksResponse>".encode()
        status = 400 if Throttling.asked <= Throttling.times else 200
        if Throttling.page is not None:
            status, body = Throttling.page
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - as there
        """Say nothing."""


@pytest.fixture
def throttling(nobody: pytest.MonkeyPatch) -> Iterator[None]:
    """It stands where AWS is."""
    Throttling.asked = 0
    server = http.server.HTTPServer(("127.0.0.1", 0), Throttling)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    nobody.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    nobody.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    nobody.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.usefixtures("throttling")
def test_throttling_is_waited_out(nobody: pytest.MonkeyPatch) -> None:
    nobody.setattr(Throttling, "times", 1)
    assert connect("apply", REGION, None).call("cloudformation", "DescribeStacks")["Stacks"] == []
    assert Throttling.asked == 2


@pytest.mark.usefixtures("throttling")
def test_throttling_without_end_is_told(nobody: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    nobody.setattr(Throttling, "times", 100)
    nobody.setattr(aws, "ATTEMPTS", 2)
    assert "AWS was asked too often" in refused(capsys, *APPLY, "--region", REGION)
    assert Throttling.asked == 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("AccessDenied", "allow your user or role cloudformation:DescribeStacks"),
        ("ExpiredToken", "sign in again"),
        ("InvalidClientTokenId", "AWS does not know these credentials"),
        ("LimitExceededException", "Service Quotas"),
        ("OptInRequired", "--region"),
        ("InternalFailure", "in a minute"),
        ("SomethingNew", "API reference of cloudformation"),
    ],
)
def test_a_command_ends_with_what_to_do(
    talk: Conversation, capsys: pytest.CaptureFixture[str], code: str, said: str
) -> None:
    talk.refuse("cloudformation", "describe_stacks", code, "No.\x1b[2J")
    err = refused(capsys, *APPLY)
    assert f"cloudformation:DescribeStacks: {code}: No" in err
    assert said in err
    assert "\x1b" not in err


def test_a_wrong_call_of_ours_is_a_bug_and_no_refusal() -> None:
    talk = Conversation()
    talk.answer("iot", "describe_custom_metric", {})
    with pytest.raises(botocore.exceptions.ParamValidationError):
        talk.aws.call("iot", "DescribeCustomMetric", colour="red")
    talk = Conversation()
    talk.refuse("iot", "describe_custom_metric", "UnauthorizedException", "no")
    with pytest.raises(CloudRefused, match="allow your user or role iot:DescribeCustomMetric"):
        talk.aws.call("iot", "DescribeCustomMetric", metricName="a")
