"""The Open Inference Protocol over REST: a workflow is a model (docs/reference/inference.md)."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dataflower.errors import InvalidArgument, NotFound
from dataflower.gateway.answer_size import check_answer
from dataflower.gateway.http.body import JSON, json_response, read_body
from dataflower.gateway.http.infer_json import InferRequest, Tensor, Wanted, read_request, write_response
from dataflower.gateway.http.presence import result_of
from dataflower.gateway.http.site import Site
from dataflower.gateway.infer_tensors import decode_input, encode_output, metadata_of
from dataflower.gateway.messages import output_ports
from dataflower.host.api import WorkflowStatus
from dataflower.spec.function import Port

PLATFORM = "dataflower_workflow"
EXTENSIONS = ("binary_tensor_data", "dataflower.v1")
LENGTH = "inference-header-content-length"


class Inference:
    """`/v2`."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def routes(self) -> list[Route]:
        """Where it answers; each model also under its version."""
        routes = [
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
        ]
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(model, self.model),
                Route(f"{model}/ready", self.model_ready),
                Route(f"{model}/infer", self.infer, methods=["POST"]),
            ]
        return routes

    async def server(self, request: Request) -> Response:
        """Who this is."""
        return json_response({"name": "dataflower", "version": self._site.version, "extensions": EXTENSIONS})

    async def live(self, request: Request) -> Response:
        """The loop turns."""
        return json_response({"live": True})

    async def ready(self, request: Request) -> Response:
        """New calls are taken."""
        ready = not self._site.closing
        return json_response({"ready": ready}, 200 if ready else 503)

    async def model(self, request: Request) -> Response:
        """Its inputs and outputs."""
        status = self._model(request)
        described = {"name": status.name, "versions": [str(status.version)], "platform": PLATFORM}
        inputs, outputs = status.workflow.inputs, output_ports(status)
        return json_response({**described, "inputs": _described(inputs), "outputs": _described(outputs)})

    async def model_ready(self, request: Request) -> Response:
        """404 for a model that is not there."""
        return json_response({"name": self._model(request).name, "ready": True})

    async def infer(self, request: Request) -> Response:
        """Call the workflow."""
        status = self._model(request)
        body = await read_body(request, self._site.body_limit)
        asked, tensors = read_request(body, request.headers.get(LENGTH))
        wanted = _wanted(asked, status)
        deadline = self._deadline(request, asked)
        invocation = await self._site.host.invoke(status.name, _inputs(tensors, asked, status), deadline=deadline)
        values = await result_of(invocation, request.receive)
        check_answer([value for name, value in values.items() if name in wanted], self._site.body_limit)
        made = {
            port.name: encode_output(port, values[port.name])
            for port in output_ports(status)
            if port.name in wanted and port.name in values
        }
        head: dict[str, Any] = {"model_name": status.name, "model_version": str(status.version)}
        if asked.id:
            head["id"] = asked.id
        text, length = write_response(head, made, (name for name, binary in wanted.items() if binary))
        headers = {"content-type": JSON if length is None else "application/octet-stream"}
        if length is not None:
            headers[LENGTH] = str(length)
        return Response(text, headers=headers)

    def _model(self, request: Request) -> WorkflowStatus:
        status = self._site.host.workflow(request.path_params["name"])
        version = request.path_params.get("version", "")
        if version not in ("", str(status.version)):
            raise NotFound(f"{status.name} is at version {status.version}; there is no version {version!r}")
        return status

    def _deadline(self, request: Request, asked: InferRequest) -> float | None:
        deadline = self._site.deadline(request)
        timeout_us = asked.parameters.get("timeout", 0)
        if isinstance(timeout_us, str) and timeout_us.isdecimal():
            timeout_us = int(timeout_us)
        if isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or timeout_us < 0:
            raise InvalidArgument(f"parameter 'timeout' must be a whole number, 0 or more, not {timeout_us!r}")
        if timeout_us == 0:  # as Triton has it: no limit
            return deadline
        by = self._site.clock.monotonic() + timeout_us / 1e6
        return by if deadline is None else min(by, deadline)


def _described(ports: tuple[Port, ...]) -> list[dict[str, Any]]:
    made = []
    for port in ports:
        datatype, shape = metadata_of(port)
        made.append({"name": port.name, "datatype": datatype, "shape": list(shape)})
    return made


def _inputs(tensors: list[Tensor], asked: InferRequest, status: WorkflowStatus) -> dict[str, Any]:
    ports = {port.name: port for port in status.workflow.inputs}
    inputs: dict[str, Any] = {}
    for tensor, given in zip(tensors, asked.inputs, strict=True):
        port = ports.get(tensor.name)
        if port is None:
            raise InvalidArgument(f"unknown input {tensor.name!r}; {status.name} takes {', '.join(ports) or 'none'}")
        if tensor.name in inputs:
            raise InvalidArgument(f"input {tensor.name!r} is given twice")
        _refuse_shared_memory(given.parameters)
        inputs[tensor.name] = decode_input(port, tensor, tensor.raw)
    missing = [port.name for port in status.workflow.inputs if not port.optional and port.name not in inputs]
    if missing:
        raise InvalidArgument(f"input {missing[0]!r} of {status.name} is missing")
    return inputs


def _wanted(asked: InferRequest, status: WorkflowStatus) -> dict[str, bool]:
    """Outputs that the caller wants, and whether as bytes behind the JSON."""
    known = {output.name for output in status.workflow.outputs}
    default = _truth(asked.parameters, "binary_data_output", False)
    if not asked.outputs:
        return dict.fromkeys(known, default)
    return {output.name: _checked(output, known, status.name, default) for output in asked.outputs}


def _checked(output: Wanted, known: set[str], name: str, default: bool) -> bool:
    if output.name not in known:
        raise InvalidArgument(f"unknown output {output.name!r}; {name} gives {', '.join(sorted(known))}")
    _refuse_shared_memory(output.parameters)
    if output.parameters.get("classification"):
        raise InvalidArgument(f"output {output.name!r}: the classification extension is not offered")
    return _truth(output.parameters, "binary_data", default)


def _truth(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidArgument(f"parameter {name!r} must be true or false, not {value!r}")
    return value


def _refuse_shared_memory(parameters: dict[str, Any]) -> None:
    if "shared_memory_region" in parameters:
        raise InvalidArgument("the shared-memory extensions are not offered; send the contents")
