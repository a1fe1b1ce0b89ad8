"""The Open Inference Protocol over a host: a workflow is a model (docs/reference/inference.md)."""

from __future__ import annotations

import asyncio
from typing import Any

from dataflower.clock import Clock
from dataflower.errors import DataflowerError, InvalidArgument, NotFound
from dataflower.gateway._generated import inference_pb2 as pb
from dataflower.gateway._generated import inference_pb2_grpc
from dataflower.gateway.answer_size import check_answer, fitting
from dataflower.gateway.guard import deadline_of, guarded
from dataflower.gateway.infer_tensors import decode_input, encode_output, metadata_of
from dataflower.gateway.messages import output_ports
from dataflower.gateway.service import departure
from dataflower.host.api import HostApi, WorkflowStatus

PLATFORM = "dataflower_workflow"
EXTENSIONS = ("dataflower.v1", "grpc.health.v1")
"""What else this server speaks."""


class InferenceService(inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The six methods of proto/inference/grpc_service.proto."""

    def __init__(self, host: HostApi, *, clock: Clock, max_message_bytes: int, version: str) -> None:
        self._host = host
        self._clock = clock
        self._limit = max_message_bytes
        self._version = version

    @guarded
    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> Any:  # noqa: D102
        return pb.ServerLiveResponse(live=True)

    @guarded
    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> Any:  # noqa: D102
        return pb.ServerReadyResponse(ready=True)

    @guarded
    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> Any:  # noqa: D102
        try:
            self._model(request.name, request.version)
        except NotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    @guarded
    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Any) -> Any:  # noqa: D102
        return pb.ServerMetadataResponse(name="dataflower", version=self._version, extensions=EXTENSIONS)

    @guarded
    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> Any:  # noqa: D102
        model = self._model(request.name, request.version)
        response = pb.ModelMetadataResponse(name=model.name, versions=[str(model.version)], platform=PLATFORM)
        for ports, into in ((model.workflow.inputs, response.inputs), (output_ports(model), response.outputs)):
            for port in ports:
                datatype, shape = metadata_of(port)
                into.add(name=port.name, datatype=datatype, shape=shape)
        return response

    @guarded
    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> Any:  # noqa: D102
        model = self._model(request.model_name, request.model_version)
        wanted = _wanted_outputs(request, model)
        invocation = await self._host.invoke(
            model.name, _inputs(request, model), deadline=self._deadline(request, context)
        )
        try:
            outputs = await invocation.result()
        except asyncio.CancelledError:
            invocation.cancel(departure(context))
            raise
        check_answer([value for name, value in outputs.items() if name in wanted], self._limit)
        response = pb.ModelInferResponse(model_name=model.name, model_version=str(model.version), id=request.id)
        for port in output_ports(model):
            if port.name in wanted and port.name in outputs:
                tensor = encode_output(port, outputs[port.name])
                response.outputs.add(name=port.name, datatype=tensor.datatype, shape=tensor.shape)
                response.raw_output_contents.append(tensor.data)
        return fitting(response, self._limit)

    def _model(self, name: str, version: str) -> WorkflowStatus:
        status = self._host.workflow(name)
        if version not in ("", str(status.version)):
            raise NotFound(f"{name} is at version {status.version}; there is no version {version!r}")
        return status

    def _deadline(self, request: pb.ModelInferRequest, context: Any) -> float | None:
        deadline = deadline_of(context, self._clock)
        if "timeout" not in request.parameters:
            return deadline
        timeout_us = _integer(request.parameters["timeout"], "timeout")
        if timeout_us == 0:  # as Triton has it: no limit
            return deadline
        asked = self._clock.monotonic() + timeout_us / 1e6
        return asked if deadline is None else min(asked, deadline)


def _integer(parameter: pb.InferParameter, name: str) -> int:
    """A non-negative integer, in whichever way the client wrote it."""
    kind = parameter.WhichOneof("parameter_choice")
    value: Any = getattr(parameter, kind) if kind else None
    if kind == "string_param" and value.isdecimal():
        value = int(value)
    if kind == "bool_param" or not isinstance(value, int) or value < 0:
        raise InvalidArgument(f"parameter {name!r} must be a whole number, 0 or more, not {value!r}")
    return value


def _inputs(request: pb.ModelInferRequest, model: WorkflowStatus) -> dict[str, Any]:
    ports = {port.name: port for port in model.workflow.inputs}
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise InvalidArgument(f"{len(request.inputs)} inputs, but {len(raws)} entries in raw_input_contents")
    inputs: dict[str, Any] = {}
    for index, tensor in enumerate(request.inputs):
        port = ports.get(tensor.name)
        if port is None:
            raise InvalidArgument(f"unknown input {tensor.name!r}; {model.name} takes {', '.join(ports) or 'none'}")
        if tensor.name in inputs:
            raise InvalidArgument(f"input {tensor.name!r} is given twice")
        if "shared_memory_region" in tensor.parameters:
            raise _no_shared_memory()
        if raws and tensor.HasField("contents"):
            raise InvalidArgument(f"input {tensor.name!r} has both typed and raw contents")
        inputs[tensor.name] = decode_input(port, tensor, raws[index] if raws else None)
    missing = [p.name for p in model.workflow.inputs if not p.optional and p.name not in inputs]
    if missing:
        raise InvalidArgument(f"input {missing[0]!r} of {model.name} is missing")
    return inputs


def _wanted_outputs(request: pb.ModelInferRequest, model: WorkflowStatus) -> set[str]:
    known = {output.name for output in model.workflow.outputs}
    for output in request.outputs:
        if output.name not in known:
            raise InvalidArgument(f"unknown output {output.name!r}; {model.name} gives {', '.join(sorted(known))}")
        if "shared_memory_region" in output.parameters:
            raise _no_shared_memory()
        if "classification" in output.parameters:
            raise InvalidArgument(f"output {output.name!r}: the classification extension is not offered")
    return {output.name for output in request.outputs} or known


def _no_shared_memory() -> DataflowerError:
    return InvalidArgument("the shared-memory extensions are not offered; send the contents")
