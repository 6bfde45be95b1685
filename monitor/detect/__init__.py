"""Pure judgement: from counters to metrics, from metrics to behaviors; no clock, no file, no socket."""

from __future__ import annotations
