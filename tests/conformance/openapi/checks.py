"""What schemathesis is told about this API, and what it checks beyond the document.

Must never make a request that fails look good: it may choose polls, times and callers, and nothing else.
"""

import datetime
import json
import os
import re
import zlib

import schemathesis
from schemathesis.core.failures import Failure

# By kind; see prepare.py.
POLLS = json.loads(os.environ["POLLS"])
# Authorization headers of callers; "" for none. The first is an administrator.
CALLERS = json.loads(os.environ["CALLERS"])

# Only polls of these kinds are closed, released or shown as events. Otherwise no poll would stay open, and a stream would not end.
KINDS = {
    "closePoll": ["closed", "final", "spare"],
    "releaseResults": ["closed", "final", "open", "spare"],
    "watchResults": ["final"],
}
POLL_ID = re.compile("[A-Za-z0-9_.~-]{1,64}")

STATUS_OF = {
    "INVALID_ARGUMENT": {400, 408, 413, 415},
    "UNAUTHENTICATED": {401},
    "PERMISSION_DENIED": {403},
    "NOT_FOUND": {404},
    "FAILED_PRECONDITION": {409},
    "ALREADY_EXISTS": {409},
    "RESOURCE_EXHAUSTED": {429},
    "UNAVAILABLE": {503},
    "DEADLINE_EXCEEDED": {504},
    # Of no such method or path.
    "UNIMPLEMENTED": {404, 405},
}
# Every answer may have these.
ALWAYS = {
    "content-type", "content-length", "transfer-encoding", "date", "connection", "x-content-type-options", "x-accel-buffering",
    "content-security-policy",
}


def number(*of) -> int:
    """A number that depends on what was generated only, so that a seed repeats a run."""
    return zlib.crc32(repr(of).encode())


@schemathesis.hook
def before_call(context, case, kwargs):
    operation = context.operation.definition.raw["operationId"]
    parameters, body = case.path_parameters or {}, case.body
    seed = number(operation, parameters, case.query, body)
    poll = parameters.get("poll")
    if operation == "watchResults" and isinstance(poll, str):
        # A poll that createPoll has made may have this id, and would have a stream without an end.
        parameters["poll"] = f"missing-{poll}"[:64]
    # Most valid ids are those of polls that exist.
    if isinstance(poll, str) and POLL_ID.fullmatch(poll) and seed % 8:
        polls = [id for kind in KINDS.get(operation, POLLS) for id in POLLS[kind]]
        parameters["poll"] = polls[seed % len(polls)]
    if isinstance(body, dict):
        # Random ids are of no poll, and random times of no year that is allowed.
        if operation == "castVote" and isinstance(body.get("option_id"), str) and seed % 4:
            body["option_id"] = "a"
            if "poll_id" in body and seed % 3:
                body["poll_id"] = parameters["poll"]
        if operation == "castSampleVote" and isinstance(body.get("voteid"), str) and seed % 4:
            body["voteid"] = POLLS["open"][0]
            body["option"] = "a"
        if operation == "createPoll" and isinstance(body.get("closes_at"), str) and seed % 4:
            in_minutes = lambda minutes: (datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)).isoformat()
            body["closes_at"] = in_minutes(30)
            if isinstance(body.get("opens_at"), str):
                body["opens_at"] = in_minutes(seed % 20)
            if isinstance(body.get("poll_id"), str) and not POLL_ID.fullmatch(body["poll_id"]):
                body["poll_id"] = f"made-{seed}"
    caller = CALLERS[0 if seed % 3 else seed // 3 % len(CALLERS)]
    if caller and "Authorization" not in case.headers:
        case.headers["Authorization"] = caller


def responses(case, status: int):
    """The document's answers with this status."""
    documented = case.operation.definition.raw["responses"]
    return documented.get(str(status)) or documented.get(f"{status // 100}XX")


def headers_of(case, response):
    answer = responses(case, response.status_code)
    root = case.operation.schema.raw_schema
    if answer and "$ref" in answer:
        answer = root["components"]["responses"][answer["$ref"].rsplit("/", 1)[1]]
    return {name.lower() for name in (answer or {}).get("headers", {})}


@schemathesis.check
def no_header_that_the_document_lacks(ctx, response, case):
    if response.status_code == 405:
        return
    unknown = {name.lower() for name in response.headers} - ALWAYS - headers_of(case, response)
    if unknown:
        raise Failure(operation=case.operation.label, title="Header that the document lacks", message=", ".join(sorted(unknown)))


def header(response, name):
    return ", ".join(response.headers.get(name, []))


@schemathesis.check
def errors_have_their_form(ctx, response, case):
    def fail(message):
        raise Failure(operation=case.operation.label, title="Error without its form", message=f"{response.status_code}: {message}")

    status = response.status_code
    if status < 400:
        return
    try:
        code = json.loads(response.content)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        fail(f"no error in {response.content[:100]!r}")
    if status not in STATUS_OF.get(code, {500}):
        fail(f"with {code}")
    if "no-store" not in header(response, "cache-control"):
        fail("may be kept in a cache")
    if status == 401 and not header(response, "www-authenticate").startswith("Bearer"):
        fail("without WWW-Authenticate")
    if status == 429 and not header(response, "retry-after").isdecimal():
        fail("without Retry-After")


@schemathesis.check
def only_what_everybody_sees_is_kept(ctx, response, case):
    kept = "public" in header(response, "cache-control")
    operation = case.operation.definition.raw["operationId"]
    if kept and (response.request.method not in ("GET", "HEAD") or response.status_code not in (200, 304)):
        raise Failure(operation=operation, title="Kept by caches", message=f"{response.request.method} {response.status_code}")
    manager = len(CALLERS) > 1 and response.request.headers.get("Authorization") == CALLERS[0]
    if kept and manager and operation != "getQrCode":
        raise Failure(operation=operation, title="Kept by caches", message="an answer to an administrator")
