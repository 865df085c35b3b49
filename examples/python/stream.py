"""Streams many votes, and says of each whether it is stored. Exit code 0 only if all are."""

import asyncio
import collections
import csv
import json
import sys

import grpc

from outcome import Outcome
from service import CALL_SECONDS, Service, argument_parser
from vote_input import BadLine, from_csv, generated
from vote_stream import VoteStream
from votestream.v1 import polls_pb2, polls_pb2_grpc


class Tally:
    """Counts outcomes, and writes those that are not durable to a file, if there is one."""

    def __init__(self, report):
        self.counts = collections.Counter()
        self.reasons = collections.Counter()
        self.report = csv.writer(report) if report else None

    def settled(self, number, outcome):
        self.counts[outcome.kind] += 1
        if outcome.kind != "durable":
            self.reasons[outcome.code] += 1
            if self.report:
                self.report.writerow([number, *outcome])


async def options_of(arguments):
    service = Service(arguments.results or arguments.server)
    async with service.channel() as channel:
        call = polls_pb2_grpc.PollServiceStub(channel).GetPoll
        request = polls_pb2.GetPollRequest(poll_id=arguments.poll)
        response = await call(request, metadata=service.metadata, timeout=CALL_SECONDS)
    return [option.option_id for option in response.poll.options]


async def main():
    parser = argument_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--file", help="CSV of poll_id,user_id,option_id, with or without this header; - for stdin")
    source.add_argument("--generate", type=int, metavar="N", help="one vote each of N users instead")
    parser.add_argument("--poll", help="poll of the generated votes")
    parser.add_argument("--seed", type=int, default=1, help="the same seed generates the same votes [%(default)s]")
    parser.add_argument("--report", help="file for the votes that are not durable: line,outcome,code,reason")
    arguments = parser.parse_args()
    service = Service(arguments.server)

    if arguments.generate is None:
        file = sys.stdin.buffer if arguments.file == "-" else open(arguments.file, "rb")
        batches = from_csv(file)
    elif arguments.poll:
        batches = generated(arguments.generate, arguments.poll, await options_of(arguments), arguments.seed)
    else:
        parser.error("--generate needs --poll")
    report = open(arguments.report, "w", encoding="utf-8", newline="") if arguments.report else None
    tally = Tally(report)

    async def next_batch():
        # In a thread, since the input may make us wait.
        batch = await asyncio.to_thread(next, batches, None)
        for number, bad in batch or []:
            if isinstance(bad, BadLine):
                tally.settled(number, Outcome("rejected", "NOT_A_VOTE", str(bad)))
        return batch and [(number, vote) for number, vote in batch if not isinstance(vote, BadLine)]

    gave_up = await VoteStream(service, next_batch, tally.settled).run()
    if report:
        report.close()
    if gave_up:
        print(f"the rest of the input was not read: {gave_up}", file=sys.stderr)
    kinds = {kind: tally.counts[kind] for kind in ("durable", "rejected", "unknown")}
    print(json.dumps({**kinds, "reasons": dict(sorted(tally.reasons.items()))}))
    sys.exit(0 if not gave_up and not tally.reasons else 1)


try:
    asyncio.run(main())
except grpc.aio.AioRpcError as error:
    sys.exit(f"{error.details()} ({error.code().name})")
except OSError as error:
    sys.exit(str(error))
