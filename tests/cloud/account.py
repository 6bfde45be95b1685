"""A strict reader of templates: what CloudFormation fills in is filled in, and the API's own model judges the result.

Owns the judgement by names, types, enums, patterns and limits that botocore carries for each call. Refuses to know what
kinwatch wants to say with a template.
"""

from __future__ import annotations

import io
import json
import re
from functools import cache
from typing import Any, Final

import botocore.session
from botocore.model import ListShape, MapShape, Shape, StructureShape

ACCOUNT: Final = "123456789012"
REGION: Final = "eu-west-1"
_PSEUDO: Final = {"AWS::Partition": "aws", "AWS::Region": REGION, "AWS::AccountId": ACCOUNT}
_CLASSES: Final = {r"\p{Graph}": "!-~", r"\p{L}": "A-Za-z", r"\p{Z}": " ", r"\p{N}": "0-9"}

Json = dict[str, Any]


@cache
def service(name: str) -> Any:  # noqa: ANN401 - botocore has no types
    """The model of a service as botocore ships it; nothing is called."""
    return botocore.session.get_session().get_service_model(name)


def operations(name: str) -> set[str]:
    """Every call that a service has."""
    return set(service(name).operation_names)


class Account:
    """A template after CloudFormation has filled it in."""

    def __init__(self, template: Json) -> None:
        self.template = template
        self.resources: Json = template["Resources"]
        self.filled: Json = {name: self._fill(one["Properties"]) for name, one in self.resources.items()}

    def of_type(self, kind: str) -> list[Json]:
        """Properties of each resource of a type, filled in."""
        return [self.filled[name] for name, one in self.resources.items() if one["Type"] == kind]

    def one(self, kind: str) -> Json:
        """Properties of the only resource of a type."""
        (found,) = self.of_type(kind)
        return found

    def _fill(self, node: Any) -> Any:  # noqa: ANN401 - what JSON has
        if isinstance(node, list):
            return [self._fill(one) for one in node]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((function, value),) = node.items()
            if function == "Ref":
                return self._name(value)
            if function == "Fn::GetAtt":
                return self._attribute(*value)
            if function == "Fn::Sub":
                return self._substituted(value)
        assert not [key for key in node if key.startswith("Fn::")], node
        return {key: self._fill(value) for key, value in node.items()}

    def _name(self, logical: str) -> str | int:
        if logical in _PSEUDO:
            return _PSEUDO[logical]
        if logical in self.template.get("Parameters", {}):
            default: str | int = self.template["Parameters"][logical]["Default"]
            return default
        one = self.resources[logical]
        named = {
            "AWS::IoT::CustomMetric": "MetricName",
            "AWS::IoT::SecurityProfile": "SecurityProfileName",
            "AWS::IoT::ThingGroup": "ThingGroupName",
        }
        if one["Type"] in named:
            name: str = one["Properties"][named[one["Type"]]]
            return name
        return self._attribute(logical, "Arn") if one["Type"] == "AWS::SNS::Topic" else f"stack-{logical.lower()}"

    def _attribute(self, logical: str, attribute: str) -> str:
        assert logical in self.resources, f"nothing is called {logical}"
        space = self.resources[logical]["Type"].split("::")[1].lower()
        return f"arn:aws:{space}:{REGION}:{ACCOUNT}:{logical}" if attribute == "Arn" else f"stack-{logical.lower()}"

    def _substituted(self, text: str) -> str:
        def value(found: re.Match[str]) -> str:
            inside = found[1]
            if inside.startswith("!"):
                return f"${{{inside[1:]}}}"
            name, _, attribute = inside.partition(".")
            return self._attribute(name, attribute) if attribute else str(self._name(inside))

        return re.sub(r"\$\{([^}]*)\}", value, text)


def faults(call: str, properties: Json, given: Json | None = None, api: str = "iot") -> list[str]:
    """What is wrong with a call of the API that has these properties, as CloudFormation spells them, and these."""
    shape = service(api).operation_model(call).input_shape
    return _structure(shape, _named(shape, properties | (given or {})), call)


def structure_faults(shape: str, value: Json, api: str = "iot") -> list[str]:
    """What is wrong with a part of a call."""
    return list(_judge(service(api).shape_for(shape), value, shape))


def _named(shape: StructureShape, value: Json) -> Json:
    """Names as the API has them: CloudFormation's begin with a capital, most of the API's do not."""
    return {key if key in shape.members else key[:1].lower() + key[1:]: one for key, one in value.items()}


def _judge(shape: Shape, value: Any, where: str) -> list[str]:  # noqa: ANN401 - what JSON has
    if isinstance(shape, StructureShape):
        if not isinstance(value, dict):
            return [f"{where}: {value!r} is no object"]
        return _structure(shape, _named(shape, value), where)
    if isinstance(shape, ListShape):
        if not isinstance(value, list):
            return [f"{where}: {value!r} is no list"]
        inner = [fault for index, one in enumerate(value) for fault in _judge(shape.member, one, f"{where}[{index}]")]
        return _limits(shape, len(value), where) + inner
    if isinstance(shape, MapShape):
        found = [fault for key in value for fault in _judge(shape.key, key, f"{where} key")]
        return found + [fault for key, one in value.items() for fault in _judge(shape.value, one, f"{where}.{key}")]
    return _scalar(shape, value, where)


def _structure(shape: StructureShape, members: Json, where: str) -> list[str]:
    found = [f"{where}: needs {name}" for name in shape.required_members if name not in members]
    for name, value in members.items():
        if name not in shape.members:
            found.append(f"{where}: has no {name}")
        else:
            found += _judge(shape.members[name], value, f"{where}.{name}")
    return found


def _scalar(shape: Shape, value: Any, where: str) -> list[str]:  # noqa: ANN401 - what JSON has
    kind = shape.type_name
    if kind == "long" and isinstance(value, str):
        value = int(value)  # CloudFormation's Count is text
    types: dict[str, Any] = {"string": str, "boolean": bool, "integer": int, "long": int, "double": (int, float)}
    types["blob"] = (bytes, io.BytesIO)
    if not isinstance(value, types[kind]) or (kind != "boolean" and isinstance(value, bool)):
        return [f"{where}: {value!r} is no {kind}"]
    if kind in {"boolean", "blob"}:
        return []
    found = _limits(shape, len(value) if isinstance(value, str) else value, where)
    enum = shape.metadata.get("enum")
    if enum and value not in enum:
        found.append(f"{where}: {value!r} is none of {enum}")
    pattern = shape.metadata.get("pattern")
    if pattern and not re.fullmatch(_python(pattern), value):
        found.append(f"{where}: {value!r} does not match {pattern}")
    return found


def _python(pattern: str) -> str:
    for java, python in _CLASSES.items():
        pattern = pattern.replace(java, python)
    return pattern


def _limits(shape: Shape, size: float, where: str) -> list[str]:
    least, most = shape.metadata.get("min", size), shape.metadata.get("max", size)
    return [] if least <= size <= most else [f"{where}: {size} is not within {least} and {most}"]


def permits(policy: Json, action: str, resource: str, thing: str) -> bool:
    """Whether an IoT policy allows an action on a resource (client/..., topic/...) to a thing of that name."""
    variables = {"${iot:Connection.Thing.ThingName}": thing}
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        actions, resources = statement["Action"], statement["Resource"]
        for pattern in [resources] if isinstance(resources, str) else resources:
            for variable, value in variables.items():
                pattern = pattern.replace(variable, value)  # noqa: PLW2901 - the same pattern, filled in
            assert "${" not in pattern, f"{pattern}: a variable that nobody fills in"
            known = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
            wanted = f"arn:aws:iot:{REGION}:{ACCOUNT}:{resource}"
            if action in ([actions] if isinstance(actions, str) else actions) and re.fullmatch(known, wanted):
                return True
    return False


def size(policy: Json) -> int:
    """Bytes of a policy document as it is stored, without white space."""
    return len(json.dumps(policy, separators=(",", ":")))


def request_faults(api: str, operation: str, arguments: Json) -> list[str]:
    """What the API's model says against a call with these arguments, spelled as the API has them."""
    shape = service(api).operation_model(operation).input_shape
    if shape is None:
        return [] if not arguments else [f"{operation} takes no arguments"]
    return _structure(shape, arguments, operation)
