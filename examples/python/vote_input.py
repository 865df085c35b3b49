"""Where the votes of a stream come from: a CSV file, or a generator. Both number them from 1 and yield batches."""

import hashlib
import re

from votestream.v1 import ingest_pb2

FIELDS = ["poll_id", "user_id", "option_id"]
# One line is one vote, so that a stray quote costs one vote only. A field is quoted or plain.
FIELD = r'[ \t]*(?:"((?:[^"]|"")*)"[ \t]*|([^",]*))'
LINE = re.compile(",".join([FIELD] * len(FIELDS)))
BATCH_VOTES = 100
READ_BYTES = 1 << 16


class BadLine(Exception):
    """A line that is not a vote."""


def from_csv(file):
    """Batches of (line number, vote or BadLine) from a binary file. Lines that have come do not wait for others."""
    batch, rest, number = [], b"", 0
    while True:
        chunk = file.read1(READ_BYTES)
        *lines, rest = (rest + chunk).split(b"\n")
        if not chunk:
            lines.append(rest)
        for line in lines:
            number += 1
            fields = fields_of(line, is_first=number == 1)
            if fields == [] or (number == 1 and fields == FIELDS):
                continue
            batch.append((number, vote(fields)))
            if len(batch) == BATCH_VOTES:
                yield batch
                batch = []
        if batch:
            yield batch
            batch = []
        if not chunk:
            return


def fields_of(line, is_first):
    """The fields of a line: none if it is blank, None if it is not a vote."""
    try:
        text = line.decode("utf-8-sig" if is_first else "utf-8").rstrip("\r")
    except UnicodeDecodeError:
        return None
    if not text.strip():
        return []
    match = LINE.fullmatch(text)
    # Blanks around a field are no part of it, blanks inside quotes are.
    pairs = zip(match.groups()[::2], match.groups()[1::2]) if match else []
    return [plain.strip() if quoted is None else quoted.replace('""', '"') for quoted, plain in pairs] or None


def vote(fields):
    if fields is None:
        return BadLine("the line is not poll_id,user_id,option_id in UTF-8")
    return ingest_pb2.Vote(poll_id=fields[0], user_id=fields[1], option_id=fields[2])


def generated(count, poll_id, option_ids, seed):
    """Batches of votes, one vote a user. The same seed gives the same votes."""

    def numbered(number):
        digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
        option_id = option_ids[int.from_bytes(digest[:4], "big") % len(option_ids)]
        return number, ingest_pb2.Vote(poll_id=poll_id, user_id=f"user-{seed}-{number}", option_id=option_id)

    for first in range(1, count + 1, BATCH_VOTES):
        yield [numbered(number) for number in range(first, min(first + BATCH_VOTES, count + 1))]
