"""Starts ministack with sequence numbers of the form that AWS documents.

Its own begin with zeros, and it compares them as texts. AWS documents the pattern 0|([1-9]\\d{0,128}), so a client may keep
a number; the number without its zeros then stands behind every record.
"""

import itertools
import sys
import time

from ministack import app
from ministack.services import kinesis

_counter = itertools.count(1)
_lock = kinesis._sequence_lock


def next_sequence_number():
    """56 digits, as on AWS, in ascending order."""
    with _lock:
        return f"49{int(time.time() * 1000):034d}{next(_counter):020d}"


if not callable(getattr(kinesis, "_next_sequence_number", None)):
    sys.exit("this version of ministack makes its sequence numbers elsewhere")
kinesis._next_sequence_number = next_sequence_number
sys.argv[0] = "ministack"
sys.exit(app.main())
