"""`kinwatch doctor`: what this machine can do, what it cannot, why, and what to do about it.

Owns the words. Refuses to decide: `capture.choose` does, and the agent decides by the same function.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from monitor import __version__
from monitor import config as configuration
from monitor.capture import connector, netfacts
from monitor.capture.choose import KERNEL_BTF, bcc_obstacles, choose, compiling, obstacles, probe
from monitor.capture.core import PINS
from monitor.capture.poll import LOWER_BOUNDS
from monitor.capture.rules import cgroup2_mount
from monitor.defender.client import chosen
from monitor.defender.link import Unreachable
from monitor.defender.trial import trial
from monitor.detect.behaviors import aws_form, expected, rules
from monitor.detect.metrics import FIELDS
from monitor.errors import CaptureUnavailable, ConfigInvalid
from monitor.judging.plan import plan
from monitor.overlay import Journal
from monitor.provisioning import look
from monitor.publishing import SERVICE_SPACING_S
from monitor.shadow import signature
from monitor.sinks.text import safe

if TYPE_CHECKING:
    from monitor.capture.choose import Facts
    from monitor.config import Config, Defender, Remote
    from monitor.defender.trial import Step


def findings(config: Config | None, *, connect: bool = True, send_report: bool = False) -> dict[str, Any]:
    """Everything doctor knows, as data. `connect`, `send_report`: as in defender.trial, where there is a [defender]."""
    planned = plan(config or configuration.Config())
    settings = planned.config
    facts = probe(settings.capture.btf)
    speaks = connector.answers()
    lacking = compiling(settings.capture.btf)
    found: dict[str, Any] = {
        "version": __version__,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "facts": {
            **msgspec.to_builtins(facts),
            "relocated_by": settings.capture.btf or KERNEL_BTF,
            "proc_connector": speaks,
            "cgroup2": str(cgroup2_mount() or ""),
            "root": os.geteuid() == 0,
        },
        "pinned": Path(PINS).exists() if os.geteuid() == 0 else False,
        "core_obstacles": obstacles(facts),
        "bcc_obstacles": bcc_obstacles(facts, lacking),
        "notes": list(configuration.notes(settings)),
    }
    try:
        choice = choose(facts, settings.capture.kind, lambda: speaks, lambda: lacking)
        found |= {"capture": choice.kind, "reason": choice.reason, "hooks": list(choice.hooks)}
        if choice.kind in {"netlink", "poll"}:
            found["lower_bounds"] = [
                f"{metric}_{watch.name}"
                for watch in settings.watches
                for metric, fields in FIELDS.items()
                if not LOWER_BOUNDS.isdisjoint(fields)
            ]
    except CaptureUnavailable as error:
        found |= {"capture": None, "reason": str(error), "hooks": []}
    found["network"] = _network(settings, found["capture"])
    found["left_out"] = _left_out(found["network"])
    found["enforcement"] = _enforcement(facts, found["capture"])
    if settings.report.interval_s < SERVICE_SPACING_S:
        found["notes"].append(
            f"report.interval_s is {settings.report.interval_s}: the service takes one report per {SERVICE_SPACING_S} s"
            " unless its quota was raised"
        )
    found["behaviors"] = [
        aws_form(behavior) for watch in (config or settings).watches for behavior in expected(watch.name, watch.expect)
    ]
    found["rules"] = [rule for watch in (config or settings).watches for rule in rules(watch.name, watch.expect)]
    if planned.judged:
        # What the hooks do not tell is known only now.
        unknown = netfacts.unknown(name for name, reason in found["network"].items() if reason)
        found["clocks"] = [
            {
                "name": one.name,
                "clock": one.clock,
                "why": one.why,
                **({"normal": f"{one.behavior.metric} {one.behavior.normal()}"} if one.behavior else {}),
            }
            for one in planned.found(unknown)
        ]
    if settings.remote is not None:
        found["remote"] = _remote(settings.remote, settings.daemon.state_dir)
    if settings.defender is not None:
        found["endpoint"] = f"{settings.defender.endpoint}:{settings.defender.port}"
        found["mqtt"] = _mqtt(settings.defender)
        publisher = _identity(found, settings, settings.defender)
        if publisher is not None:
            found["connection"] = asyncio.run(
                trial(publisher, now_s=time.time(), connect=connect, send_report=send_report)
            )
    return found


def _mqtt(defender: Defender) -> dict[str, str]:
    """The library that publishes, and why it is that one, or why there is none."""
    try:
        choice = chosen(defender)
    except ConfigInvalid as error:
        return {"client": "", "why": str(error)}
    return {"client": choice.name, "why": choice.why}


def _remote(remote: Remote, state_dir: str) -> dict[str, str]:
    """What became of what was set from afar, and whether more can be."""
    standing = Journal(state_dir).read()
    told = {"state": standing.outcome, "last version": str(standing.version or ""), "error": standing.error}
    told["confirmed"] = str(standing.confirmed.version) if standing.confirmed else ""
    try:
        signature.check(remote.public_key)
    except ConfigInvalid as error:
        told["trouble"] = str(error)
    return {key: value for key, value in told.items() if value}


def _identity(found: dict[str, Any], settings: Config, defender: Defender) -> Defender | None:
    """The settings to try the connection with; None: the device has no certificate of its own yet."""
    if settings.provisioning is None:
        return defender
    now_s = time.time()
    found["identity"] = look.described(settings, now_s)
    try:
        found["notes"] += look.check(defender, settings.provisioning, settings.daemon.state_dir, now_s)
    except ConfigInvalid as error:
        found["identity"]["trouble"] = str(error)
    return look.used(defender, settings.daemon.state_dir)


def _network(settings: Config, capture: str | None) -> dict[str, str]:
    """By network hook: "" when it is there, else why not."""
    if capture != "core":
        return dict.fromkeys(netfacts.FACTS, f"capture {capture} sees no sockets" if capture else "there is no capture")
    if not settings.capture.network:
        return dict.fromkeys(netfacts.FACTS, "capture.network is false")
    found = netfacts.probe()
    return found if settings.capture.packets else found | {"packets": found["packets"] or "capture.packets is false"}


def _enforcement(facts: Facts, capture: str | None) -> dict[str, str]:
    """What becomes of who breaks an expectation of a watch with enforce = "kill"."""
    if capture != "core":
        return dict.fromkeys(("exec", "fork"), "nothing: only the core capture can enforce")
    fork = "killed before its first instruction"
    if not facts.signal_task and facts.lsm:
        fork = "refused (EPERM) by the BPF LSM; of forks at the same moment, the one too many dies as soon as it can be"
    elif not facts.signal_task:
        fork = "runs until its next exec or until the daemon kills it: the kernel has no bpf_send_signal_task (6.13)"
    return {"exec": "killed before its first instruction", "fork": fork}


def _left_out(hooks: dict[str, str]) -> list[str]:
    """Metrics that are left out for want of hooks; <w> is any watch."""
    unknown = netfacts.unknown(name for name, reason in hooks.items() if reason)
    return [f"{name}_<w>" for name, fields in FIELDS.items() if not unknown.isdisjoint(fields)]


def main(config: Config | None, as_json: bool, *, connect: bool = True, send_report: bool = False) -> int:  # noqa: FBT001 - the flag of the command line
    """Print the findings. Returns 0; 3 when nothing can be captured; 4 when a step to the broker failed."""
    found = findings(config, connect=connect, send_report=send_report)
    if as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _lines(found)))
    if not found["capture"]:
        return CaptureUnavailable.exit_code
    failed = any(step.ok is False for step in found.get("connection", ()))
    failed = failed or any("trouble" in found.get(part, {}) for part in ("identity", "remote"))
    return Unreachable.exit_code if failed else 0


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"kinwatch {found['version']} on Linux {found['kernel']} ({found['machine']})", ""]
    chosen = found["capture"] or "none"
    lines += [f"capture   {chosen}", f"          {found['reason']}"]
    lines += [f"          hook {hook}" for hook in found["hooks"]]
    lines += ["", "facts"]
    for name, value in found["facts"].items():
        word = value if isinstance(value, str) else "yes" if value else "no"
        lines.append(f"  {name.replace('_', ' '):26} {word or 'no'}")
    lines.append(f"  {'pinned programs':26} {'yes, ' + PINS if found['pinned'] else 'none'}")
    if found["core_obstacles"]:
        lines += ["", "core cannot be used"] + [f"  {text}" for text in found["core_obstacles"]]
    if found["bcc_obstacles"] and found["capture"] != "core":  # who has core misses nothing
        lines += ["", "bcc cannot be used"] + [f"  {text}" for text in found["bcc_obstacles"]]
    lines += ["", "network"]
    for name, reason in found["network"].items():
        lines.append(f"  {name:10} {'-' if reason else 'ok':3} {netfacts.FACTS[name].purpose}")
        lines += [f"  {'':14} {reason}"] if reason else []
    if found["left_out"]:
        lines.append(f"  left out: {', '.join(found['left_out'])}")
    lines += ["", 'enforce = "kill": what becomes of who breaks an expectation']
    lines += [f"  {name:10} {what}" for name, what in found["enforcement"].items()]
    if found.get("lower_bounds"):
        lines += ["", "metrics that are lower bounds with this capture"]
        lines += [f"  {name}" for name in found["lower_bounds"]]
    lines += _judged(found)
    if found.get("clocks"):
        lines += ["", "behaviors of the security profile, and the clock that judges each"]
        lines += [line for row in found["clocks"] for line in _clock(row)]
    lines += _from_afar(found)
    if found.get("connection"):
        lines += ["", f"connection to {found['endpoint']}"]
        lines += [f"  over {found['mqtt']['client']}: {found['mqtt']['why']}"] if found["mqtt"]["client"] else []
        lines += [line for step in found["connection"] for line in _step(step)]
    if found["notes"]:
        lines += ["", "notes"] + [f"  {note}" for note in found["notes"]]
    return lines


def _from_afar(found: dict[str, Any]) -> list[str]:
    """Who the device is, and how it is configured, where the file does not say it."""
    lines: list[str] = []
    if found.get("remote"):
        lines += ["", "configuration from afar"]
        lines += [safe(f"  {key:26} {value}") for key, value in found["remote"].items()]
    if found.get("identity"):
        lines += ["", "identity, from fleet provisioning"]
        lines += [safe(line) for line in look.lines(found["identity"])]
    return lines


def _judged(found: dict[str, Any]) -> list[str]:
    """What is expected of the watches, expanded."""
    lines: list[str] = []
    if found["behaviors"]:
        lines += ["", "expectations, as behaviors of a security profile"]
        lines += [f"  {msgspec.json.encode(behavior).decode()}" for behavior in found["behaviors"]]
    if found["rules"]:
        lines += ["", "rules that no security profile can express"]
        for rule in found["rules"]:
            lines.append(f"  {rule['watch']}: {rule['rule']} = {msgspec.json.encode(rule['value']).decode()}")
    return [safe(line) for line in lines]


def _clock(row: dict[str, str]) -> list[str]:
    return [
        f"  {row['clock']:8} {row['name']:24} {row.get('normal', '')}".rstrip(),
        f"  {'':8} {row['why']}",
    ]


def _step(step: Step) -> list[str]:
    word = "-" if step.ok is None else "ok" if step.ok else "FAIL"
    lines = [f"  {word:5} {step.name:10} {step.detail}"] + ([f"  {'':16} {step.remedy}"] if step.remedy else [])
    return [safe(line) for line in lines]  # brokers and proxies have a say in it
