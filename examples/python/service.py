"""Where the services are, and who calls them."""

import argparse
import asyncio
import contextlib
import ipaddress
import os
from urllib.parse import urlsplit

import grpc

CONNECT_SECONDS = 5
# Longest time for the answer to a call with one answer.
CALL_SECONDS = 30

CHANNEL_OPTIONS = [
    # This program decides what is sent again. Two owners of retries would multiply the attempts.
    ("grpc.enable_retries", 0),
    # A new channel is a new connection, without the pauses that an earlier channel has earned.
    ("grpc.use_local_subchannel_pool", 1),
    # Notices a host that has vanished while a call is silent.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
]


def argument_parser(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--server", default="http://127.0.0.1:50051", help="URL at which votes are cast [%(default)s]")
    parser.add_argument("--results", help="URL of polls and results, if it is another one")
    return parser


class Service:
    """One address. VOTESTREAM_TOKEN is sent with every call, if it is set."""

    def __init__(self, url):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SystemExit(f"{url} is not a URL such as http://127.0.0.1:50051")
        self.url = url
        self.is_secure = parts.scheme == "https"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.target = f"{host}:{parts.port or (443 if self.is_secure else 80)}"
        token = os.environ.get("VOTESTREAM_TOKEN", "").strip()
        if token and not self.is_secure and not is_loopback(parts.hostname):
            raise SystemExit(f"the token would be sent to {url} unencrypted: use https://")
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def channel(self):
        if self.is_secure:
            return grpc.aio.secure_channel(self.target, grpc.ssl_channel_credentials(), options=CHANNEL_OPTIONS)
        return grpc.aio.insecure_channel(self.target, options=CHANNEL_OPTIONS)


def is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def is_connected(channel):
    """Whether a connection comes about at the first attempt: the pauses between attempts are the caller's."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_SECONDS):
            while (state := channel.get_state(try_to_connect=True)) != grpc.ChannelConnectivity.READY:
                if state == grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    return False
                await channel.wait_for_state_change(state)
            return True
    return False
