"""A producer of votes that knows nothing of this project: boto3 and aws-kinesis-agg.

Puts plain JSON votes with PutRecord, one a record, and KPL aggregates of such votes, and prints what must come of them:
{"submitted": votes that count as submitted, "last": {user: option}}. Users vote again, in either form, and the last vote is
the one that was put last: all of a user's votes reach one shard, because the user is their partition key. Where Kinesis is
comes from the standard AWS variables.
"""

import argparse
import hashlib
import json
import random

import boto3
from aws_kinesis_agg.aggregator import RecordAggregator

OPTIONS = ["red", "green"]
USERS = [f"user-{at}" for at in range(40)] + ["Zoë", "用户"]


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--stream", required=True)
    arguments.add_argument("--poll", required=True)
    arguments = arguments.parse_args()
    kinesis = boto3.client("kinesis")
    choose = random.Random(5)
    submitted, last = 0, {}

    shards = kinesis.list_shards(StreamName=arguments.stream)["Shards"]
    ranges = [
        (int(shard["HashKeyRange"]["StartingHashKey"]), int(shard["HashKeyRange"]["EndingHashKey"])) for shard in shards
    ]

    def shard_of(user):
        key = int.from_bytes(hashlib.md5(user.encode()).digest(), "big")
        return next(at for at, (start, end) in enumerate(ranges) if start <= key <= end)

    def vote(user, option):
        body = {"cognitoid": user, "voteid": arguments.poll, "option": option}
        return json.dumps(body).encode()

    def put_plain(users):
        nonlocal submitted
        for user in users:
            option = choose.choice(OPTIONS)
            kinesis.put_record(StreamName=arguments.stream, PartitionKey=user, Data=vote(user, option))
            submitted += 1
            last[user] = option

    def put_aggregated(users):
        """One aggregate a shard, as the Producer Library makes them."""
        nonlocal submitted
        aggregators = {}
        for user in users:
            option = choose.choice(OPTIONS)
            aggregators.setdefault(shard_of(user), RecordAggregator()).add_user_record(user, vote(user, option))
            submitted += 1
            last[user] = option
        for aggregator in aggregators.values():
            key, _, data = aggregator.clear_and_get().get_contents()
            kinesis.put_record(StreamName=arguments.stream, PartitionKey=key, Data=data)

    put_plain(USERS[:25])
    put_aggregated(USERS[15:])
    # Two votes of one user in one aggregate, then some change their minds in either form.
    put_aggregated(choose.choices(USERS, k=30))
    put_plain(choose.choices(USERS, k=10))
    put_aggregated(choose.choices(USERS, k=10))

    # An aggregate in a shard where one of its votes does not belong: that vote does not count.
    here = USERS[0]
    elsewhere = next(user for user in USERS if shard_of(user) != shard_of(here))
    stray = RecordAggregator()
    stray.add_user_record(here, vote(here, "red"))
    stray.add_user_record(elsewhere, vote(elsewhere, "green" if last[elsewhere] == "red" else "red"))
    key, _, data = stray.clear_and_get().get_contents()
    kinesis.put_record(StreamName=arguments.stream, PartitionKey=key, Data=data)
    submitted += 1
    last[here] = "red"

    print(json.dumps({"submitted": submitted, "last": last}))


main()
