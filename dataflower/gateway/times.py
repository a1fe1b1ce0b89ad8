"""Seconds, as everywhere here, and the Timestamps and Durations of messages."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def set_time(into: Timestamp | Duration, seconds: float) -> None:
    """Write seconds (wall clock or a span) into a Timestamp or Duration."""
    into.FromNanoseconds(round(seconds * 1e9))


def seconds_of(message: Timestamp | Duration) -> float:
    """Seconds of a Timestamp or Duration."""
    return message.seconds + message.nanos / 1e9
