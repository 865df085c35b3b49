"""Casts one vote. Exit code 0 if it is stored, 1 if it was rejected, 2 if that is unknown."""

import asyncio
import sys

import grpc

from outcome import DURABLE, Backoff, Outcome, failure, not_connected
from service import CALL_SECONDS, Service, argument_parser, is_connected
from votestream.v1 import ingest_pb2, ingest_pb2_grpc

# The service, or whoever checks the caller in front of it, has refused the vote.
REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNAUTHENTICATED"}


async def cast(service, vote):
    """A vote that was certainly not stored is cast again. One whose outcome is unknown is not: its copy would replace what the
    user has cast elsewhere meanwhile."""
    backoff = Backoff()
    while failed := await attempt(service, vote):
        if failed.code in REFUSED:
            return Outcome("rejected", failed.code, failed.text)
        if not failed.is_not_stored:
            return Outcome("unknown", failed.code, failed.text)
        pause = backoff.pause(failed.retry_seconds)
        if pause is None:
            return Outcome("rejected", failed.code, failed.text)
        await asyncio.sleep(pause)
    return DURABLE


async def attempt(service, vote):
    # A program that casts many votes keeps its channel.
    async with service.channel() as channel:
        if not await is_connected(channel):
            return not_connected(service.url)
        call = ingest_pb2_grpc.IngestServiceStub(channel).CastVote
        try:
            await call(ingest_pb2.CastVoteRequest(vote=vote), metadata=service.metadata, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            return failure(error)
    return None


async def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--poll", required=True)
    parser.add_argument("--user", help="not needed if VOTESTREAM_TOKEN names the user")
    parser.add_argument("--option", required=True)
    arguments = parser.parse_args()
    vote = ingest_pb2.Vote(poll_id=arguments.poll, user_id=arguments.user, option_id=arguments.option)
    outcome = await cast(Service(arguments.server), vote)
    print(": ".join(text for text in outcome if text))
    sys.exit({"durable": 0, "rejected": 1, "unknown": 2}[outcome.kind])


asyncio.run(main())
