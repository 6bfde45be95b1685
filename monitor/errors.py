"""Every failure kinwatch reports by name; knows nothing else of the program.

The tree::

    KinwatchError
      ConfigInvalid          a file or a flag says something impossible            exit 2
      RecordFileInvalid      a record file is torn, foreign or of another layout   exit 2
      CaptureUnavailable     this machine or these privileges cannot capture       exit 3
      AlreadyRunning         another daemon holds the pins                         exit 3
      DaemonUnreachable      no daemon answers on the control socket               exit 3
      EngineRefused          the native engine refused a call (a bug, or no memory)  exit 3
      ReportInvalid          a Defender document breaks the v1.0 format            exit 4
      CloudRefused           AWS refused a call, failed, or was not reached        exit 4

A message says what failed, on what, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class KinwatchError(Exception):
    """Anything kinwatch can explain. `exit_code` is what the command ends with."""

    exit_code: ClassVar[int] = 1


class ConfigInvalid(KinwatchError):
    """A configuration file, a flag or a watch is wrong; nothing was started."""

    exit_code = 2


class RecordFileInvalid(KinwatchError):
    """A record file cannot be replayed from here on."""

    exit_code = 2


class CaptureUnavailable(KinwatchError):
    """The wanted capture cannot work here; the message carries the reason and the remedy."""

    exit_code = 3


class AlreadyRunning(KinwatchError):
    """A second daemon would take the first one's pins."""

    exit_code = 3


class DaemonUnreachable(KinwatchError):
    """Nothing answers on the control socket."""

    exit_code = 3


class EngineRefused(KinwatchError):
    """The native engine refused a call."""

    exit_code = 3


class ReportInvalid(KinwatchError):
    """A Device Defender document breaks the v1.0 format or its value rules."""

    exit_code = 4


class CloudRefused(KinwatchError):
    """AWS refused a call, failed, or was not reached; or what stands there is not ours to change."""

    exit_code = 4

    def __init__(self, text: str, *, code: str = "", denied: bool = False, no_detect: bool = False) -> None:
        super().__init__(text)
        self.code = code
        """AWS's error code, or the name of the failure on this side; "": neither."""
        self.denied = denied
        """The credentials lack a permission."""
        self.no_detect = no_detect
        """The account has no Device Defender Detect."""
