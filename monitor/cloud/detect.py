"""The template of an account with Device Defender Detect.

Owns the metrics, the security profile, who is alarmed, what is exported and the quarantine. Refuses to know how a
behavior is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from monitor.cloud import behaviors
from monitor.cloud.parts import Json, alert_topic, allow, arn_of, iot_arn, logical, quarantine_group, ref, role
from monitor.detect.profile import DEVICE_SIDE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from monitor.config import Config
    from monitor.detect.metrics import MetricKind

IOT: Final = "iot.amazonaws.com"


def parts(  # noqa: PLR0913 - what a profile consists of
    config: Config,
    kinds: Mapping[str, MetricKind],
    profile: Json,
    *,
    name: str,
    base: str,
    targets: Sequence[str | Json],
    export_topic: str,
    existing: Collection[str] = (),
) -> tuple[Json, list[str]]:
    """Sections of the template and notes.

    `kinds`: of the reported metrics; `export_topic`: "" exports nothing; `existing`: metrics that somebody else has
    defined already. Raises ConfigInvalid.
    """
    defined = {metric: kind for metric, kind in kinds.items() if metric not in existing}
    judged, notes = behaviors.of_config(config, kinds, profile, defined)
    sections = alert_topic()
    resources = sections["Resources"]
    resources |= {
        logical(behaviors.METRIC, metric): {
            "Type": behaviors.METRIC_TYPE,
            "Properties": {"MetricName": metric, "MetricType": kind},
        }
        for metric, kind in defined.items()
    }
    used = [one.get("Metric") for one in judged if "MetricDimension" not in one]
    retained: list[Json] = [
        {"Metric": metric}
        for metric in (behaviors.reference(found, defined) for found in (*kinds, *sorted(DEVICE_SIDE)))
        if metric not in used
    ]
    properties: Json = {
        "SecurityProfileName": name,
        "SecurityProfileDescription": "What kinwatch expects of its devices",
        "Behaviors": judged,
        "AdditionalMetricsToRetainV2": retained,
        "AlertTargets": {"SNS": {"AlertTargetArn": ref("AlarmTopic"), "RoleArn": arn_of("AlarmRole")}},
        "TargetArns": list(targets),
    }
    resources["AlarmRole"] = role(IOT, [allow("sns:Publish", ref("AlarmTopic"))])
    if export_topic:
        for one in (*judged, *retained):
            if "Metric" in one:
                one["ExportMetric"] = True
        properties["MetricsExportConfig"] = {"MqttTopic": export_topic, "RoleArn": arn_of("ExportRole")}
        resources["ExportRole"] = role(IOT, [allow("iot:Publish", iot_arn(f"topic/{export_topic}"))])
    resources["SecurityProfile"] = {"Type": "AWS::IoT::SecurityProfile", "Properties": properties}
    if _has_ipv6(judged):
        # cfn-lint takes networks for IPv4, which the service does not.
        resources["SecurityProfile"]["Metadata"] = {"cfn-lint": {"config": {"ignore_checks": ["E3002"]}}}
    resources |= _quarantine(base)
    sections["Outputs"] |= {
        "SecurityProfileName": {"Value": ref("SecurityProfile")},
        "QuarantineAction": {"Value": f"{base}-quarantine"},
    }
    return sections, notes


def _has_ipv6(judged: Sequence[Json]) -> bool:
    networks = [one.get("Criteria", {}).get("Value", {}).get("Cidrs", ()) for one in judged]
    return any(":" in network for some in networks for network in some)


def _quarantine(base: str) -> Json:
    """The one mitigation that Detect alarms know: the thing joins a group."""
    group = iot_arn("thinggroup/*")
    return {
        "QuarantineGroup": quarantine_group(base),
        "QuarantineRole": role(
            IOT,
            [
                allow("iot:ListPrincipalThings", "*"),
                allow("iot:AddThingToThingGroup", [iot_arn("thing/*"), group]),
            ],
        ),
        "QuarantineAction": {
            "Type": "AWS::IoT::MitigationAction",
            "Properties": {
                "ActionName": f"{base}-quarantine",
                "RoleArn": arn_of("QuarantineRole"),
                "ActionParams": {
                    "AddThingsToThingGroupParams": {
                        "ThingGroupNames": [ref("QuarantineGroup")],
                        "OverrideDynamicGroups": True,
                    }
                },
            },
        },
    }
