"""What the sync and the async client share: requests, answers, channel options, errors."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import EncodeError

from dataflower.config.address import server_address
from dataflower.config.text import read_text
from dataflower.errors import (
    Code,
    DataflowerError,
    FailedPrecondition,
    Failure,
    InvalidArgument,
    InvocationFailed,
    ResourceExhausted,
    Unavailable,
)
from dataflower.gateway import values
from dataflower.gateway._generated import workflow_pb2 as pb
from dataflower.gateway.status import DETAILS_KEY, from_status
from dataflower.gateway.times import seconds_of, set_time

DEFAULT_ADDRESS = "127.0.0.1:8001"
CONTROL_TIMEOUT_S = 30.0
"""For calls that run no workflow: a server that does not answer by then is Unavailable or late."""

LONGEST_S = 1e9
"""Deadlines that are further away overflow gRPC's clock, and would have passed at once."""

LARGE_BYTES = 4 * 1024 * 1024
"""Requests from this size on are held against the server's limit before they travel."""
IN_PARTS = "; send it in parts through a stream input"
TOO_LARGE = IN_PARTS + ", or raise `max_message_bytes` in the server's settings"

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),  # the server's limit is the one that counts
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # one client's failed attempts must not make the next one wait
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


class Item(NamedTuple):
    """One result of a stream call: item `index` of a stream output, or a value (`index` -1)."""

    port: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of an item
    value: Any


class Summary(NamedTuple):
    """What the server said at the end of a stream call. Durations in seconds, measured in the server."""

    invocation_id: str
    items: int
    elapsed_s: float
    first_output_s: float | None


class ClosedStub:
    """In place of a client's stub once it is closed: gRPC's own errors for that are not the same, or private."""

    def __getattr__(self, name: str) -> Any:
        raise FailedPrecondition("the client is closed")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is and how to be let in. `ca_file`: PEM certificates to trust, which also turns TLS on.

    InvalidArgument for an address that is none.
    """

    address: str = DEFAULT_ADDRESS
    api_key: str | None = None
    ca_file: Path | None = None
    tls: bool = False

    def __post_init__(self) -> None:
        try:
            server_address(self.address)
        except ValueError as error:
            raise InvalidArgument(f"the server's address: {error}") from None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """Sent with every call."""
        return None if self.api_key is None else (("authorization", f"Bearer {self.api_key}"),)

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None for plain text. InvalidArgument if the file can't be read."""
        if self.ca_file is None:
            return grpc.ssl_channel_credentials() if self.tls else None
        try:
            return grpc.ssl_channel_credentials(Path(self.ca_file).read_bytes())
        except OSError as error:
            raise InvalidArgument(f"can't read {self.ca_file}: {error.strerror}") from None

    def _suspicion(self, details: str) -> str:
        for said, cause in _TLS_CAUSES.items():
            if said in details:
                return cause
        if "Socket closed" in details and self.credentials() is None:
            return "if it wants TLS, name the certificates to trust (ca_file)"
        return f"is `dataflower serve` running on {self.address}?"

    def error(self, error: grpc.RpcError, *, invocation: bool = False) -> DataflowerError:
        """The exception for a failed call; `invocation`: the call was one, so its end by time is a failure of it."""
        status, details = error.code(), error.details() or ""
        metadata = error.trailing_metadata() or ()
        if any(key == DETAILS_KEY for key, _ in metadata):
            return from_status(status, details, metadata)
        if status is grpc.StatusCode.UNAVAILABLE:
            return Unavailable(f"no answer from {self.address} ({details}); {self._suspicion(details)}")
        if invocation and status is grpc.StatusCode.DEADLINE_EXCEEDED:
            return InvocationFailed(Failure(Code.DEADLINE_EXCEEDED, "DeadlineExceeded", "the deadline passed"))
        if invocation and status is grpc.StatusCode.CANCELLED:
            return InvocationFailed(Failure(Code.CANCELLED, "Cancelled", "the call was cancelled"))
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
            details += TOO_LARGE
        return from_status(status, details, metadata)


# What gRPC's TLS says -> what is probably the matter.
_TLS_CAUSES = {
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not one that the trusted ones (ca_file) vouch for",
    "Hostname Verification": "the server's certificate is for another name",
    "WRONG_VERSION_NUMBER": "the server does not speak TLS",
}


def request_size(request: Any) -> int:
    """In bytes. ResourceExhausted for one that is longer than any message can be."""
    try:
        return int(request.ByteSize())
    except EncodeError:  # what protobuf says of 2 GiB and more
        raise ResourceExhausted(f"the request takes 2 GiB or more{IN_PARTS}") from None


def check_size(nbytes: int, limit: int) -> None:
    """Raise ResourceExhausted for a request that the server would not take."""
    if nbytes > limit:
        raise ResourceExhausted(f"a request of {nbytes} bytes is larger than max_message_bytes, {limit}{TOO_LARGE}")


def workflow_source(path_or_text: str | Path, name: str = "<workflow>") -> tuple[str, str]:
    """(YAML, name for messages) of a file, or of text (it has line breaks), which is called `name`.

    Raises:
        NotFound: no such file.
        WorkflowInvalid: it is not UTF-8.
    """
    if isinstance(path_or_text, str) and "\n" in path_or_text:
        return path_or_text, name
    return read_text(path_or_text), str(path_or_text)


def apply_request(
    path_or_text: str | Path, expected_version: int | None, plan: str | Path | None, plan_name: str | None
) -> pb.ApplyWorkflowRequest:
    """To apply a workflow; `plan`: a file, its text, or empty for none; `plan_name`: for messages, else the file's."""
    source, name = workflow_source(path_or_text)
    request = pb.ApplyWorkflowRequest(source=source, file_name=name, expected_version=expected_version)
    if plan:
        request.plan, found = workflow_source(plan, "<plan>")
        request.plan_file_name = plan_name or found
    elif plan is not None:
        request.plan = ""
    return request


def deadline(deadline_s: Any) -> float | None:
    """What a caller gave, in seconds; InvalidArgument for what is no number, or none that a clock can show."""
    if deadline_s is None:
        return None
    if isinstance(deadline_s, bool) or not isinstance(deadline_s, numbers.Real):
        raise InvalidArgument(f"deadline_s takes a number of seconds, not {deadline_s!r:.80}")
    seconds = float(deadline_s)
    if math.isnan(seconds) or seconds > LONGEST_S:
        raise InvalidArgument(f"deadline_s takes up to {LONGEST_S:g} seconds, not {seconds:g}; None for no deadline")
    return max(seconds, -1.0)


def invoke_request(workflow: str, inputs: Mapping[str, Any], request_id: str | None) -> pb.InvokeRequest:
    """To call a workflow; iterators are read to their end."""
    request = pb.InvokeRequest(workflow=workflow, request_id=request_id or "")
    values.encode_map({name: _whole(value) for name, value in inputs.items()}, request.inputs)
    return request


def submit_request(
    workflow: str, inputs: Mapping[str, Any], request_id: str | None, deadline_s: float | None
) -> pb.SubmitRequest:
    """To submit a call."""
    request = pb.SubmitRequest(workflow=workflow, request_id=request_id or "")
    values.encode_map({name: _whole(value) for name, value in inputs.items()}, request.inputs)
    if (seconds := deadline(deadline_s)) is not None:
        set_time(request.deadline, seconds)
    return request


def open_request(
    workflow: str, inputs: Mapping[str, Any], open_inputs: tuple[str, ...], request_id: str | None
) -> pb.InvokeStreamRequest:
    """The first message of a stream call."""
    request = pb.InvokeStreamRequest()
    request.open.workflow = workflow
    request.open.request_id = request_id or ""
    request.open.open_inputs.extend(open_inputs)
    values.encode_map(inputs, request.open.inputs)
    return request


def item_request(port: str, value: Any) -> pb.InvokeStreamRequest:
    """An item of a stream input."""
    request = pb.InvokeStreamRequest()
    request.item.port = port
    values.encode(value, request.item.value)
    return request


def end_request(port: str) -> pb.InvokeStreamRequest:
    """The end of a stream input."""
    return pb.InvokeStreamRequest(end=pb.InputEnd(port=port))


def decode_item(message: pb.OutputItem) -> Item:
    """An item of a stream call."""
    return Item(message.port, message.index if message.HasField("index") else -1, values.decode(message.value))


def decode_summary(message: pb.InvocationSummary) -> Summary:
    """The end of a stream call."""
    first = seconds_of(message.first_output) if message.HasField("first_output") else None
    return Summary(message.invocation_id, message.items, seconds_of(message.elapsed), first)


def _whole(value: Any) -> Any:
    return list(value) if hasattr(value, "__next__") else value
