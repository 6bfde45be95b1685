"""Pure judgement: from counters to metrics, from metrics to behaviors; no clock, no file, no socket."""
