"""The template of an account without Device Defender Detect: the device judges, IoT rules carry its alarms on.

Owns the rules, what they write to, and what becomes of what they cannot write. Refuses to know behaviors.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from monitor.cloud.parts import (
    MARK,
    Json,
    alert_topic,
    allow,
    arn_of,
    logical,
    ref,
    role,
    settings_of,
    sub,
    topic_of,
)
from monitor.cloud.tables import alarm_columns, event_columns
from monitor.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from monitor.config import Config
    from monitor.schema import Defender

RETENTION: Final = "RetentionDays"
_SQL: Final = "2016-03-23"
_PERIOD_S: Final = 300
_INGEST: Final = re.compile(r"\$aws/rules/([a-zA-Z0-9_]+)/?(.*)\Z")
_LEVEL: Final = re.compile(r"[a-zA-Z0-9_.:@=-]*\Z")


def parts(config: Config, behaviors: Sequence[str], *, base: str) -> tuple[Json, list[str]]:
    """Sections of the template and notes. `behaviors`: names that alarm lines may have. Raises ConfigInvalid."""
    settings = settings_of(config)
    if not settings.alarm_topic:
        raise ConfigInvalid(f"{config.origin}: defender.alarm_topic is off; without Detect alarms have no other way")
    sections = alert_topic()
    resources = sections["Resources"]
    sections["Parameters"][RETENTION] = {
        "Type": "Number",
        "Default": 90,
        "MinValue": 1,
        "Description": "Days that alarms and events are kept",
    }
    resources |= _store(base)
    resources |= _stream("Alarms", "alarms", alarm_columns())
    streams = ["AlarmsStream"]
    rules = {"AlarmsRule": _rule(settings, "alarm_topic", base, [*_telling(base), _firehose("Alarms", "\n")])}
    if settings.events_topic:
        # A batch is lines already; one that is compressed is kept as it came.
        resources |= _stream("Events", "events", event_columns(), compressed=settings.events_gzip)
        streams.append("EventsStream")
        rules["EventsRule"] = _rule(settings, "events_topic", base, [_firehose("Events", "")])
    names = [rule["Properties"]["RuleName"] for rule in rules.values()]
    if len(set(names)) < len(names):
        what = "alarm_topic and events_topic go to the same rule of Basic Ingest"
        raise ConfigInvalid(f"{config.origin}: defender.{what}; give one of them another")
    resources |= rules
    resources["RuleRole"] = role(
        "iot.amazonaws.com",
        [
            allow("sns:Publish", ref("AlarmTopic")),
            allow(["firehose:PutRecord", "firehose:PutRecordBatch"], [arn_of(stream) for stream in streams]),
            allow("sqs:SendMessage", arn_of("DeadLetters")),
            allow("cloudwatch:PutMetricData", "*", Condition={"StringEquals": {"cloudwatch:namespace": base}}),
        ],
        bound=True,
    )
    resources |= _alarms(behaviors, base)
    sections["Outputs"] |= {
        "BucketName": {"Value": ref("Bucket")},
        "DatabaseName": {"Value": ref("Database")},
        "WorkGroupName": {"Value": ref("WorkGroup")},
        "DeadLetterQueueUrl": {"Value": ref("DeadLetters")},
    }
    notes = ["without Detect nothing in the cloud judges reports: all alarms are those that devices raise themselves"]
    return sections, notes


def source(settings: Defender, key: str) -> tuple[str, str]:
    """The name of the rule of Basic Ingest that a topic goes to ("": none), and the filter to select from."""
    found = topic_of(settings, key, MARK)
    ingest = _INGEST.match(found)
    rule, name = (ingest[1], ingest[2] or "kinwatch") if ingest else ("", found)
    # A placeholder, and whatever SQL may read as something else, is any level.
    return rule, "/".join(level if _LEVEL.match(level) else "+" for level in name.split("/"))


def _rule(settings: Defender, key: str, base: str, actions: list[Json]) -> Json:
    rule, name = source(settings, key)
    return {
        "Type": "AWS::IoT::TopicRule",
        "Properties": {
            "RuleName": rule or f"{base}_{key.removesuffix('_topic')}".replace("-", "_"),
            "TopicRulePayload": {
                "Sql": f"SELECT * FROM '{name}'",  # noqa: S608 - of AWS IoT; _LEVEL lets no quote pass
                "AwsIotSqlVersion": _SQL,
                "Actions": actions,
                "ErrorAction": {"Sqs": {"QueueUrl": ref("DeadLetters"), "RoleArn": arn_of("RuleRole")}},
                "RuleDisabled": False,
            },
        },
    }


def _telling(base: str) -> list[Json]:
    """Tell people, and count: each event, and each behavior by itself."""
    metrics = [
        {
            "CloudwatchMetric": {
                "MetricNamespace": base,
                "MetricName": name,
                "MetricValue": "1",
                "MetricUnit": "Count",
                "RoleArn": arn_of("RuleRole"),
            }
        }
        for name in ("${event}", "${event}/${behavior}")
    ]
    told: Json = {"Sns": {"TargetArn": ref("AlarmTopic"), "MessageFormat": "RAW", "RoleArn": arn_of("RuleRole")}}
    return [told, *metrics]


def _firehose(kind: str, separator: str) -> Json:
    action: Json = {"DeliveryStreamName": ref(f"{kind}Stream"), "RoleArn": arn_of("RuleRole")}
    return {"Firehose": action | ({"Separator": separator} if separator else {})}


def _store(base: str) -> Json:
    """The bucket, who may write to it, the database over it, and what rules could not deliver."""
    keep = {"DeletionPolicy": "Retain", "UpdateReplacePolicy": "Retain"}
    everything = [arn_of("Bucket"), sub("${Bucket.Arn}/*")]
    return {
        "Bucket": {
            "Type": "AWS::S3::Bucket",
            **keep,
            "Properties": {
                "BucketEncryption": {
                    "ServerSideEncryptionConfiguration": [{"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
                },
                "PublicAccessBlockConfiguration": dict.fromkeys(
                    ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"),
                    True,
                ),
                "LifecycleConfiguration": {
                    "Rules": [{"Id": "expire", "Status": "Enabled", "ExpirationInDays": ref(RETENTION)}]
                },
            },
        },
        "BucketPolicy": {
            "Type": "AWS::S3::BucketPolicy",
            "Properties": {
                "Bucket": ref("Bucket"),
                "PolicyDocument": {
                    "Version": "2012-10-17",
                    "Statement": [
                        {
                            "Effect": "Deny",
                            "Principal": "*",
                            "Action": "s3:*",
                            "Resource": everything,
                            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
                        }
                    ],
                },
            },
        },
        "StreamRole": role(
            "firehose.amazonaws.com",
            [
                allow(["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"], arn_of("Bucket")),
                allow(["s3:AbortMultipartUpload", "s3:GetObject", "s3:PutObject"], sub("${Bucket.Arn}/*")),
            ],
        ),
        "Database": {
            "Type": "AWS::Glue::Database",
            "Properties": {
                "CatalogId": ref("AWS::AccountId"),
                "DatabaseInput": {"Name": base.lower().replace("-", "_")},
            },
        },
        "WorkGroup": {
            "Type": "AWS::Athena::WorkGroup",
            "Properties": {
                "Name": base,
                "WorkGroupConfiguration": {
                    "ResultConfiguration": {"OutputLocation": sub("s3://${Bucket}/athena/")},
                },
            },
        },
        "DeadLetters": {
            "Type": "AWS::SQS::Queue",
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
            "Properties": {"MessageRetentionPeriod": 1_209_600, "SqsManagedSseEnabled": True},
        },
    }


def _stream(kind: str, prefix: str, columns: Json, *, compressed: bool = False) -> Json:
    """A stream into the bucket, a folder a day, and the table over it."""
    day = "dt=!{timestamp:yyyy-MM-dd}/"
    packed: Json = (
        {"CompressionFormat": "UNCOMPRESSED", "FileExtension": ".json.gz"}
        if compressed
        else {"CompressionFormat": "GZIP"}
    )
    location = f"s3://${{Bucket}}/{prefix}/"
    return {
        f"{kind}Stream": {
            "Type": "AWS::KinesisFirehose::DeliveryStream",
            "Properties": {
                "DeliveryStreamType": "DirectPut",
                "ExtendedS3DestinationConfiguration": {
                    "BucketARN": arn_of("Bucket"),
                    "RoleARN": arn_of("StreamRole"),
                    "Prefix": f"{prefix}/{day}",
                    "ErrorOutputPrefix": f"failed/{prefix}/!{{firehose:error-output-type}}/{day}",
                    "BufferingHints": {"IntervalInSeconds": _PERIOD_S, "SizeInMBs": 5},
                    **packed,
                },
            },
        },
        f"{kind}Table": {
            "Type": "AWS::Glue::Table",
            "Properties": {
                "CatalogId": ref("AWS::AccountId"),
                "DatabaseName": ref("Database"),
                "TableInput": {
                    "Name": prefix,
                    "TableType": "EXTERNAL_TABLE",
                    "Parameters": {
                        "classification": "json",
                        "projection.enabled": "true",
                        "projection.dt.type": "date",
                        "projection.dt.format": "yyyy-MM-dd",
                        "projection.dt.range": "NOW-3YEARS,NOW+1DAYS",
                        "storage.location.template": sub(f"{location}dt=${{dt}}/"),
                    },
                    "PartitionKeys": [{"Name": "dt", "Type": "string"}],
                    "StorageDescriptor": {
                        "Columns": [{"Name": name, "Type": hive} for name, hive in columns.items()],
                        "Location": sub(location),
                        "InputFormat": "org.apache.hadoop.mapred.TextInputFormat",
                        "OutputFormat": "org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat",
                        "SerdeInfo": {
                            "SerializationLibrary": "org.openx.data.jsonserde.JsonSerDe",
                            "Parameters": {"ignore.malformed.json": "true"},
                        },
                    },
                },
            },
        },
    }


def _alarms(behaviors: Iterable[str], base: str) -> Json:
    """Alarms of CloudWatch. Those of behaviors notify nobody, for the rule does: they are for dashboards."""
    found = {
        logical("Alarm", behavior): _alarm(base, f"alarm/{behavior}", f"Alarms of {behavior}, all devices together")
        for behavior in behaviors
    }
    found["AlarmsAlarm"] = _alarm(base, "alarm", "Alarms of all behaviors and devices together")
    dead = _alarm("AWS/SQS", "ApproximateNumberOfMessagesVisible", "A rule could not deliver: look at the queue")
    dead["Properties"] |= {
        "Statistic": "Maximum",
        "Dimensions": [{"Name": "QueueName", "Value": {"Fn::GetAtt": ["DeadLetters", "QueueName"]}}],
        "AlarmActions": [ref("AlarmTopic")],
    }
    found["DeadLettersAlarm"] = dead
    return found


def _alarm(namespace: str, metric: str, text: str) -> Json:
    return {
        "Type": "AWS::CloudWatch::Alarm",
        "Properties": {
            "AlarmDescription": text,
            "Namespace": namespace,
            "MetricName": metric,
            "Statistic": "Sum",
            "Period": _PERIOD_S,
            "EvaluationPeriods": 1,
            "Threshold": 1,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            "TreatMissingData": "notBreaching",
        },
    }
