"""Shows the results of a poll whenever they change, and the final result at the end."""

import asyncio
import sys

import grpc

from outcome import Backoff, failure, not_connected
from service import CALL_SECONDS, Service, argument_parser, is_connected
from votestream.v1 import results_pb2, results_pb2_grpc


async def watch(service, poll_id):
    """Returns the final result, or why it cannot be had. A broken connection is not the end of the poll."""
    backoff = Backoff()
    while True:
        async with service.channel() as channel:
            stub = results_pb2_grpc.ResultsServiceStub(channel)
            try:
                if await is_connected(channel):
                    # No deadline: a poll may be open for days.
                    request = results_pb2.WatchInterimResultsRequest(poll_id=poll_id)
                    async for counts in stub.WatchInterimResults(request, metadata=service.metadata):
                        backoff.progress()
                        show("so far", counts.options, lambda option: option.counted)
                    request = results_pb2.GetFinalResultsRequest(poll_id=poll_id)
                    return await stub.GetFinalResults(request, metadata=service.metadata, timeout=CALL_SECONDS)
                failed = not_connected(service.url)
            except grpc.aio.AioRpcError as error:
                failed = failure(error)
        pause = backoff.pause(failed.retry_seconds) if failed.may_pass else None
        if pause is None:
            sys.exit(failed.text)
        await asyncio.sleep(pause)


def show(when, options, count):
    print(f"{when}:", ", ".join(f"{option.option_id} {count(option)}" for option in options), flush=True)


async def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--poll", required=True)
    arguments = parser.parse_args()
    final = await watch(Service(arguments.results or arguments.server), arguments.poll)
    show("final", final.options, lambda option: option.votes)


asyncio.run(main())
