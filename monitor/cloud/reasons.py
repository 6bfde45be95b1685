"""What an answer of AWS means for whoever asked: one sentence, with what to do about it.

Owns the table of error codes. Pure, and knows no AWS library: it gets codes and texts. Refuses to decide what happens
next.
"""

from __future__ import annotations

import re
from typing import Final

_DENIED: Final = "allow your user or role {action}"
_UNKNOWN: Final = "if that does not say it, look the code up in the API reference of {service}"
_BROKEN: Final = "AWS had a failure of its own: run the command again in a minute"
_FASTER: Final = "AWS was asked too often, after several attempts: run the command again in a minute"
_QUOTA: Final = (
    "a quota of the account is used up: remove what is no longer needed, or have it raised in Service Quotas"
)
_WRONG: Final = (
    "AWS does not take what was asked: 'kinwatch cloud check' looks at names, types and behaviors one by one"
)
_THERE: Final = (
    "something of that name is there already and belongs to somebody else: rename it, or give the profile another name"
)
_GONE: Final = "it is not there, or in another region or account: see --region and --aws-profile"
_BUSY: Final = "somebody else is changing the same thing: run the command again when that is done"
_EXPIRED: Final = "the credentials have expired: sign in again ('aws sso login', 'aws sts ...') and repeat the command"
_KEYS: Final = "AWS does not know these credentials: look at the access key, the secret, and the clock of this machine"
_TASK: Final = "a task or request of that name is there already: run the command again"
_STALE: Final = "the plan is no longer right, because the stack has changed since: run the command again"
_REGION: Final = "the account has not switched this service or region on: see --region"
_CAPABILITY: Final = "this version of kinwatch does not say CAPABILITY_IAM where it should: deploy the template by hand"
_IN_USE: Final = "something else still uses it: take that away first"
_HASH: Final = "the bucket does not take it: see that it is in the same region and yours"

REMEDIES: Final[dict[str, str]] = {
    **dict.fromkeys(
        (
            *("AccessDenied", "AccessDeniedException", "UnauthorizedException", "UnauthorizedOperation"),
            *("AuthorizationError", "Forbidden", "NotAuthorized", "403"),
        ),
        _DENIED,
    ),
    **dict.fromkeys(
        (
            *("Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestLimitExceeded"),
            *("TooManyRequestsException", "SlowDown", "RequestThrottledException", "PriorRequestNotComplete"),
        ),
        _FASTER,
    ),
    **dict.fromkeys(("LimitExceededException", "LimitExceeded", "ServiceQuotaExceededException"), _QUOTA),
    **dict.fromkeys(
        (
            *("InvalidRequestException", "ValidationError", "ValidationException", "InvalidParameterValue"),
            *("MalformedPolicyException", "InvalidParameterException", "InvalidRequest", "CFNRegistryException"),
        ),
        _WRONG,
    ),
    **dict.fromkeys(
        ("ResourceAlreadyExistsException", "AlreadyExistsException", "BucketAlreadyExists", "EntityAlreadyExists"),
        _THERE,
    ),
    **dict.fromkeys(
        (
            "ResourceNotFoundException",
            "NoSuchBucket",
            "NoSuchKey",
            "NotFoundException",
            "404",
            "StackNotFoundException",
        ),
        _GONE,
    ),
    **dict.fromkeys(
        (
            *("ConflictingResourceUpdateException", "VersionConflictException", "ConflictException"),
            *("OperationInProgressException", "TransactionInProgressException", "OperationAborted"),
        ),
        _BUSY,
    ),
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "InvalidToken"), _EXPIRED
    ),
    **dict.fromkeys(
        (
            *("InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "AuthFailure"),
            *("IncompleteSignature", "InvalidSignatureException", "MissingAuthenticationToken", "InvalidAccessKeyId"),
            *("MissingAuthenticationTokenException", "RequestTimeTooSkewed", "NotSignedUp"),
        ),
        _KEYS,
    ),
    **dict.fromkeys(("TaskAlreadyExistsException", "TokenAlreadyExistsException"), _TASK),
    **dict.fromkeys(("ChangeSetNotFound", "ChangeSetNotFoundException", "InvalidChangeSetStatus"), _STALE),
    "InvalidChangeSetStatusException": _STALE,
    **dict.fromkeys(("OptInRequired", "SubscriptionRequiredException", "RegionDisabledException"), _REGION),
    **dict.fromkeys(("InsufficientCapabilities", "InsufficientCapabilitiesException"), _CAPABILITY),
    **dict.fromkeys(("DeleteConflictException", "ResourceInUseException", "DeleteConflict"), _IN_USE),
    **dict.fromkeys(
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "BadDigest", "EncryptionTypeMismatch"), _HASH
    ),
    **dict.fromkeys(("InvalidWriteOffset", "TooManyParts", "IllegalLocationConstraintException"), _HASH),
    **dict.fromkeys(
        (
            *("InternalFailureException", "InternalFailure", "InternalServerException", "InternalError"),
            *("ServiceUnavailableException", "ServiceUnavailable", "InternalException", "500", "502", "503", "504"),
        ),
        _BROKEN,
    ),
}
"""What to do about an error code; {action} and {service} are filled in."""
DENIALS: Final = frozenset(code for code, remedy in REMEDIES.items() if remedy == _DENIED)
NO_DETECT: Final = (
    "this account has no Device Defender Detect, which is closed to new customers since 2026-08-31: "
    "--no-detect makes IoT rules for the alarms of devices instead"
)
_WORDS: Final = (
    (re.compile("TerminationProtection", re.IGNORECASE), "switch the termination protection of the stack off first"),
    (re.compile("_IN_PROGRESS"), _BUSY),
)
"""What to do where the words say more than the code."""
_ACTION: Final = re.compile(r"not authorized to perform:? ([a-z0-9-]+:[A-Za-z*]+)")
_OF_DETECT: Final = re.compile(
    r"(?=.*\bdetect\b|.*device defender)(?=.*(no longer|new customers|not available|not supported|not enabled"
    r"|availability|sign(ed)? up))",
    re.IGNORECASE | re.DOTALL,
)
_CLOSED: Final = re.compile(r"(not|no longer) (available|open) to new customers|feature availability", re.IGNORECASE)
_PREFIXES: Final = {"events": "events", "monitoring": "cloudwatch"}


def explain(code: str, text: str, service: str, operation: str) -> str:
    """Say what AWS answered to a call, and what to do. `text`: AWS's own words; `code`: of the error."""
    action = f"{_PREFIXES.get(service, service)}:{operation}"
    named = _ACTION.search(text)
    remedy = REMEDIES.get(code, _UNKNOWN).format(action=named[1] if named else action, service=service)
    remedy = next((better for words, better in _WORDS if words.search(text)), remedy)
    said = " ".join(text.split()).rstrip(".") or "no further words"
    return f"{action}: {code}: {said}; {NO_DETECT if no_detect(text) else remedy}"


def no_detect(text: str) -> bool:
    """Whether AWS's words say that the account has no Detect. How it says so is not documented: this is a reading."""
    return bool(_OF_DETECT.search(text) or _CLOSED.search(text))
