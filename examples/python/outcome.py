"""What has become of a vote, and what the end of a call proves about it."""

import random
import time
from typing import NamedTuple

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from votestream.v1 import ingest_pb2

ATTEMPTS_MAX = 20
SECONDS_MAX = 60
PAUSE_MIN_SECONDS = 0.05
PAUSE_MAX_SECONDS = 5


class Outcome(NamedTuple):
    """`durable`, `rejected` (certainly not stored) or `unknown`; the latter two with a code and a sentence."""

    kind: str
    code: str = ""
    reason: str = ""


DURABLE = Outcome("durable")

# Reasons that held before as well: the poll had no such option then either.
ALWAYS = {"MALFORMED", "POLL_NOT_FOUND", "OPTION_NOT_FOUND", "POLL_NOT_OPEN", "WRONG_SOURCE"}


def of_rejection(rejection, may_be_stored):
    """Outcome of a vote that the service has named. `may_be_stored`: it was sent before, over a connection that broke."""
    try:
        code = ingest_pb2.RejectionCode.Name(rejection.code).removeprefix("REJECTION_CODE_")
    except ValueError:
        code = str(rejection.code)
    if code == "OUTCOME_UNKNOWN":
        return Outcome("unknown", code, rejection.reason)
    if may_be_stored and code not in ALWAYS:
        reason = f"the connection broke before the vote was answered, and its copy was refused: {rejection.reason}"
        return Outcome("unknown", code, reason)
    return Outcome("rejected", code, rejection.reason)


class Failure(NamedTuple):
    """Why a call has ended, and what that proves."""

    text: str
    code: str
    # Whether what has no answer was certainly not stored.
    is_not_stored: bool
    # Whether another attempt may succeed.
    may_pass: bool
    # How long the service asks to wait.
    retry_seconds: float


MAY_PASS = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
}


def failure(error):
    """Reads the end of a call. What a status does not say is unknown: a proxy says UNAVAILABLE, too."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    has_retry = False
    for detail in details(error):
        detail.Unpack(info)
        has_retry |= detail.Unpack(retry)
    code = error.code()
    is_not_stored = (
        code == grpc.StatusCode.UNAVAILABLE and (info.domain, info.reason) == ("votestream.v1", "VOTE_NOT_STORED")
    ) or (code == grpc.StatusCode.RESOURCE_EXHAUSTED and has_retry)
    seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return Failure(f"{error.details()} ({code.name})", code.name, is_not_stored, code in MAY_PASS, seconds)


def not_connected(url):
    """No connection came about, so nothing was sent."""
    return Failure(f"cannot reach {url}", "NOT_CONNECTED", True, True, 0)


def details(error):
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        # The details contradict the status, so they are not the service's.
        return []
    return status.details if status else []


class Backoff:
    """Pauses between attempts without progress."""

    def __init__(self):
        self.progress()

    def progress(self):
        self.failures, self.since = 0, None

    def pause(self, at_least):
        """Seconds until the next attempt; None if there is none."""
        now = time.monotonic()
        self.failures += 1
        self.since = self.since or now
        step = min(PAUSE_MIN_SECONDS * 2 ** (self.failures - 1), PAUSE_MAX_SECONDS)
        # Clients that lost the same service do not all come back at the same moment.
        pause = max(step * random.uniform(0.5, 1), at_least)
        over = self.failures >= ATTEMPTS_MAX or now + pause - self.since > SECONDS_MAX
        return None if over else pause
