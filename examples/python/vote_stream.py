"""A stream of votes that resumes.

Votes are sent in their order. Those without an outcome are kept, at most WINDOW_VOTES of them: while there are so many, no
input is read. When a connection breaks, they are sent again over the next one, in their order. So the last vote of each user
stays the last. A vote that was stored already is replaced by its copy, which changes nothing.
"""

import asyncio
import collections
import contextlib
import sys
import time
from dataclasses import dataclass

import grpc

from outcome import DURABLE, Backoff, Failure, Outcome, failure, not_connected, of_rejection
from service import is_connected
from votestream.v1 import ingest_pb2, ingest_pb2_grpc

MESSAGE_VOTES = 100
WINDOW_VOTES = 10_000
# How long after a break a vote that was sent before may still be stored.
COPIES_LAND_SECONDS = 15


@dataclass
class Sent:
    """A vote without an outcome."""

    number: int
    vote: ingest_pb2.Vote
    # It was sent over a connection that broke.
    may_be_stored: bool = False


class VoteStream:
    """Sends the batches that `next_batch` returns until it returns None. Calls `settled(number, outcome)` once for each vote."""

    def __init__(self, service, next_batch, settled):
        self.service = service
        self.next_batch = next_batch
        self.settled = settled
        self.waiting = collections.deque()  # To be sent over this connection.
        self.sent = collections.deque()  # Sent over this connection.
        self.durable_through = 0  # Votes that this connection has settled.
        self.named = {}  # Rejections of this connection, by index.
        self.reading = None
        self.input_is_over = False
        self.room = asyncio.Event()
        self.copies = Copies()

    async def run(self):
        """Returns once every vote has its outcome: None, or why the stream has given up."""
        backoff = Backoff()
        # A connection is opened when there is something to send: the service ends streams that are silent for long.
        while self.waiting or await self.read():
            broken = await self.connection()
            if self.durable_through:
                backoff.progress()
            if not broken:
                continue
            unsettled = len(self.sent)
            self.break_off(broken)
            pause = backoff.pause(broken.retry_seconds) if broken.may_pass else None
            print(f"{unsettled} votes have no answer: {broken.text}", file=sys.stderr, flush=True)
            if pause is None:
                self.give_up(broken)
                return broken.text
            await asyncio.sleep(pause)
        return None

    async def connection(self):
        """Sends over one connection until everything is settled (returns None), or it breaks (returns why)."""
        self.durable_through, self.named = 0, {}
        async with self.service.channel() as channel:
            if not await is_connected(channel):
                return not_connected(self.service.url)
            call = ingest_pb2_grpc.IngestServiceStub(channel).StreamVotes(metadata=self.service.metadata)
            sender = asyncio.create_task(self.send(call))
            try:
                # Answers are read while votes are sent: the service stops reading from a client that does not.
                async for response in call:
                    self.answered(response)
            except grpc.aio.AioRpcError as error:
                return failure(error)
            finally:
                sender.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sender
        if self.durable_through and not self.sent:
            return None
        return Failure("the stream ended before every vote was settled", "UNKNOWN", False, True, 0)

    async def send(self, call):
        try:
            while message := await self.next_message():
                wait = self.copies.wait_seconds(message)
                if wait:
                    self.waiting.extendleft(reversed(message))
                    await asyncio.sleep(wait)
                    continue
                self.sent.extend(message)
                await call.write(ingest_pb2.StreamVotesRequest(votes=[sent.vote for sent in message]))
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # Whoever reads the answers learns why.
        except BaseException:
            # The input is broken, or we are cancelled.
            call.cancel()
            raise

    async def next_message(self):
        """Takes the next votes off `waiting`; none if no more come."""
        while True:
            self.room.clear()
            if self.waiting:
                return [self.waiting.popleft() for _ in range(min(MESSAGE_VOTES, len(self.waiting)))]
            if len(self.sent) + MESSAGE_VOTES > WINDOW_VOTES:
                await self.room.wait()
            elif not await self.read():
                return []

    async def read(self):
        """Reads some of the input into `waiting`; False if the input is over."""
        while not self.waiting and not self.input_is_over:
            # If this wait is cancelled, the batch is not lost: the next call waits for it.
            self.reading = self.reading or asyncio.ensure_future(self.next_batch())
            batch = await asyncio.shield(self.reading)
            self.reading = None
            self.input_is_over = batch is None
            self.waiting.extend(Sent(number, vote) for number, vote in batch or [])
        return bool(self.waiting)

    def answered(self, response):
        for rejection in response.rejections:
            self.named[rejection.index] = rejection
        # A service that claims more than was sent is not believed.
        while self.durable_through < response.durable_through and self.sent:
            sent = self.sent.popleft()
            rejection = self.named.pop(self.durable_through, None)
            self.durable_through += 1
            self.settled(sent.number, of_rejection(rejection, sent.may_be_stored) if rejection else DURABLE)
        self.room.set()

    def break_off(self, broken):
        """Votes that were sent have to be sent again, before all others."""
        if not broken.is_not_stored:
            for sent in self.sent:
                sent.may_be_stored = True
            self.copies.note(self.sent)
        self.waiting.extendleft(reversed(self.sent))
        self.sent.clear()

    def give_up(self, broken):
        for sent in self.waiting:
            if sent.may_be_stored:
                outcome = Outcome("unknown", broken.code, f"whether the vote was stored is unknown: {broken.text}")
            else:
                outcome = Outcome("rejected", broken.code, f"the vote was not stored: {broken.text}")
            self.settled(sent.number, outcome)
        self.waiting.clear()


class Copies:
    """Votes that may be stored behind our back.

    What was sent over a connection that broke may be stored seconds later, behind its copy. That does no harm if the user has
    not voted anew. Otherwise the old vote would win. So a vote of the same user for another option waits until the old one
    cannot land any more, and everything behind it waits, too.
    """

    def __init__(self):
        self.until = 0
        self.choices = {}  # The option of each (poll, user); None if there were several.

    def note(self, sent):
        now = time.monotonic()
        if now >= self.until:
            self.choices.clear()
        self.until = now + COPIES_LAND_SECONDS
        for vote in (sent.vote for sent in sent):
            user = (vote.poll_id, vote.user_id)
            if self.choices.setdefault(user, vote.option_id) != vote.option_id:
                self.choices[user] = None

    def wait_seconds(self, message):
        """How long to wait before these votes may be sent."""
        left = self.until - time.monotonic()
        if left <= 0:
            return 0
        for vote in (sent.vote for sent in message):
            if self.choices.get((vote.poll_id, vote.user_id), vote.option_id) != vote.option_id:
                return left
        # Breaks may follow each other, and what is remembered must not grow.
        return left if len(self.choices) > 4 * WINDOW_VOTES else 0
