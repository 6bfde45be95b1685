"""Configurations of many kinds, for the tests of templates.

Owns their texts. Refuses to judge what becomes of them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import msgspec

from monitor import config
from monitor.cloud.template import Template, Wanted, make
from monitor.detect.profile import load
from monitor.judging.plan import NO_PROFILE

if TYPE_CHECKING:
    from monitor.config import Config

DEFENDER: Final = """
[defender]
thing = "mything1"
endpoint = "example-ats.iot.eu-west-1.amazonaws.com"
certificate = "/etc/kinwatch/cert.pem"
private_key = "/etc/kinwatch/key.pem"
"""
MYAPP: Final = '[[watch]]\nprocess = "myapp"\n'
EXPECTING: Final = (
    MYAPP + 'enforce = "kill"\nexpect = { child_processes = 2, executables = ["/opt/a b/ü+"], depth = 2, '
    'destinations = ["10.0.0.0/8", "fd00::/8"], listening_ports = [80, 443], memfd = false }\n'
)
TEXTS: Final = {
    "a watch": MYAPP,
    "no child": MYAPP + "expect = { child_processes = 0 }\n",
    "everything expected": EXPECTING,
    "nothing but empty lists": MYAPP + "expect = { executables = [], destinations = [], listening_ports = [] }\n",
    "names that look alike": "".join(f'[[watch]]\nname = "{one}"\npid = 1\n' for one in ("my-app", "my_app", "myApp")),
    "a name of 64": f'[[watch]]\nname = "{"a" * 64}"\npid = 1\n',
    "many watches": "".join(f'[[watch]]\nname = "app{one}"\npid = 1\n' for one in range(15)),
    "packets and processors": MYAPP + "[capture]\npackets = true\n[report]\ncpu_usage = true\n",
    "no network": MYAPP + 'expect = { destinations = ["10.0.0.0/8"] }\n[capture]\nnetwork = false\n',
    "publishing": EXPECTING + DEFENDER + 'events_topic = "kinwatch/{thing}/events"\nformat = "cbor"\n',
    "compressed batches": MYAPP + DEFENDER + 'events_topic = "log/{thing}"\nevents_gzip = true\n',
    "basic ingest": MYAPP + DEFENDER + 'alarm_topic = "$aws/rules/all_alarms/kinwatch/{thing}"\n',
    "the thing's own client id": MYAPP + DEFENDER + 'client_id = "mything1"\n',
    "provisioned": MYAPP
    + '[defender]\nendpoint = "example-ats.iot.eu-west-1.amazonaws.com"\n[provisioning]\ntemplate = "cameras"\n'
    'claim_certificate = "/c.pem"\nclaim_private_key = "/c.key"\n',
    "from afar": MYAPP + DEFENDER + '[remote]\npublic_key = "/k.pem"\n',
    "a client id of one device": MYAPP + DEFENDER + 'client_id = "gateway"\nalarm_topic = "a/${{b}}/it\'s {thing}"\n',
}
PROFILE: Final[dict[str, Any]] = {
    "securityProfileName": "fleet:1",
    "behaviors": [
        {
            "name": "learnt",
            "metric": "num_child_procs_myapp",
            "criteria": {"mlDetectionConfig": {"confidenceLevel": "HIGH"}},
        },
        {
            "name": "like-the-others",
            "metric": "aws:all-bytes-out",
            "criteria": {
                "comparisonOperator": "less-than-equals",
                "durationSeconds": 300,
                "statisticalThreshold": {"statistic": "p99"},
            },
        },
        {
            "name": "small",
            "metric": "aws:message-byte-size",
            "metricDimension": {"dimensionName": "topics", "operator": "NOT_IN"},
            "criteria": {"comparisonOperator": "less-than", "value": {"count": 70000}},
        },
        {
            "name": "ports",
            "metric": "aws:listening-tcp-ports",
            "criteria": {"comparisonOperator": "in-port-set", "value": {"ports": [22, 22, 443]}},
            "suppressAlerts": True,
        },
        {
            "name": "images",
            "metric": "child_exes_myapp",
            "criteria": {"comparisonOperator": "in-set", "value": {"strings": ["/bin/g++", "/bin/sh"]}},
        },
        {
            "name": "quiet",
            "metric": "bytes_out_myapp",
            "criteria": {
                "comparisonOperator": "less-than",
                "value": {"number": 1e22},
                "consecutiveDatapointsToAlarm": 10,
            },
        },
    ],
}


def configured(text: str) -> Config:
    """The configuration in a text."""
    return config.parse(text, "test.toml")


def made(text: str, profile: dict[str, Any] | None = None, **flags: Any) -> Template:  # noqa: ANN401 - as Wanted has
    """The template for a configuration; flags as in Wanted."""
    meant = load(json.dumps(profile).encode()) if profile else NO_PROFILE
    return make(configured(text), msgspec.convert(flags, Wanted), profile or {}, meant)
