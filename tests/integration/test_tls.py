"""TLS: who is let in, who is not, and that the key of a caller travels inside."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import trustme

from dataflower.errors import Code, DataflowerError, InvalidArgument, Unavailable
from dataflower.gateway.async_client import AsyncClient
from dataflower.gateway.client import Client
from dataflower.gateway.server import serve
from dataflower.gateway.settings import GatewayConfig
from dataflower.spec.workflow import Workflow
from dataflower.testing.fake_host import FakeHost

pytestmark = pytest.mark.usefixtures("grpc_runtime")


def load(text: str, file: str) -> Workflow:
    raise AssertionError("nothing is applied here")


@pytest.fixture
async def host() -> AsyncIterator[FakeHost]:
    host = FakeHost()
    host.add("echo", lambda x: x)
    yield host
    await host.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> dict[str, Path]:
    """A certificate for localhost, its key, and the authority to trust."""
    made = authority.issue_cert("localhost", "127.0.0.1")
    paths = {name: tmp_path / f"{name}.pem" for name in ("cert", "key", "ca")}
    made.cert_chain_pems[0].write_to_path(paths["cert"])
    made.private_key_pem.write_to_path(paths["key"])
    authority.cert_pem.write_to_path(paths["ca"])
    return paths


def tls(files: dict[str, Path], **settings: Any) -> GatewayConfig:
    return GatewayConfig(port=0, tls_cert_file=files["cert"], tls_key_file=files["key"], **settings)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_a_client_that_trusts_the_authority_is_served(host: FakeHost, files: dict[str, Path], name: str) -> None:
    async with await serve(host, tls(files), load=load) as gateway:
        async with AsyncClient(f"{name}:{gateway.grpc_port}", ca_file=files["ca"]) as client:
            assert await client.invoke("echo", x={"a": 1}) == {"out": {"a": 1}}
            assert [item.value async for item in client.stream("echo", x=b"bytes")] == [b"bytes"]

        def with_the_sync_client() -> Any:
            with Client(f"{name}:{gateway.grpc_port}", ca_file=str(files["ca"])) as client:
                return client.invoke("echo", x=2)

        assert await asyncio.to_thread(with_the_sync_client) == {"out": 2}


async def test_who_speaks_no_tls_or_trusts_somebody_else_is_not_served(
    host: FakeHost, files: dict[str, Path], tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    async with await serve(host, tls(files), load=load) as gateway:
        address = f"localhost:{gateway.grpc_port}"
        for trust, said in (
            ({}, "if it wants TLS"),
            ({"tls": True}, "certificate is not one that"),
            ({"ca_file": stranger}, "certificate is not one that"),
        ):
            async with AsyncClient(address, **trust) as client:
                with pytest.raises(Unavailable, match=said):
                    await client.invoke("echo", x=1)
        async with AsyncClient(address, ca_file=files["ca"]) as client:
            assert await client.invoke("echo", x=1) == {"out": 1}


async def test_a_certificate_for_another_name_is_refused(
    host: FakeHost, authority: trustme.CA, files: dict[str, Path]
) -> None:
    other = authority.issue_cert("elsewhere.example")
    other.cert_chain_pems[0].write_to_path(files["cert"])
    other.private_key_pem.write_to_path(files["key"])
    async with (
        await serve(host, tls(files), load=load) as gateway,
        AsyncClient(f"localhost:{gateway.grpc_port}", ca_file=files["ca"]) as client,
    ):
        with pytest.raises(Unavailable, match="for another name"):
            await client.invoke("echo", x=1)


async def test_tls_is_spoken_where_it_is_the_server_that_does_not(host: FakeHost, files: dict[str, Path]) -> None:
    async with (
        await serve(host, GatewayConfig(port=0), load=load) as gateway,
        AsyncClient(f"localhost:{gateway.grpc_port}", ca_file=files["ca"]) as client,
    ):
        with pytest.raises(Unavailable, match="the server does not speak TLS"):
            await client.invoke("echo", x=1)


async def test_keys_are_asked_for_inside_tls(host: FakeHost, files: dict[str, Path]) -> None:
    async with await serve(host, tls(files, api_keys=("secret", "second")), load=load) as gateway:
        address = f"localhost:{gateway.grpc_port}"
        for key in ("secret", "second"):
            async with AsyncClient(address, api_key=key, ca_file=files["ca"]) as client:
                assert await client.invoke("echo", x=1) == {"out": 1}
        for wrong in (None, "secre", "secrets", ""):
            async with AsyncClient(address, api_key=wrong, ca_file=files["ca"]) as client:
                with pytest.raises(DataflowerError) as caught:
                    await client.invoke("echo", x=1)
                assert caught.value.code is Code.UNAUTHENTICATED


async def test_the_key_is_a_bearer_token(host: FakeHost, files: dict[str, Path]) -> None:
    """As any gRPC client would send it."""
    from dataflower.gateway._generated import workflow_pb2 as pb
    from dataflower.gateway._generated import workflow_pb2_grpc

    async with await serve(host, tls(files, api_keys=("secret",)), load=load) as gateway:
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(files["ca"].read_bytes()), grpc.access_token_call_credentials("secret")
        )
        async with grpc.aio.secure_channel(f"localhost:{gateway.grpc_port}", credentials) as channel:
            stub = workflow_pb2_grpc.WorkflowServiceStub(channel)
            answer = await stub.ListWorkflows(pb.ListWorkflowsRequest())
    assert [workflow.name for workflow in answer.workflows] == ["echo"]


async def test_files_that_are_no_certificates_are_refused(host: FakeHost, files: dict[str, Path]) -> None:
    with pytest.raises(InvalidArgument, match="can't read the TLS file"):
        await serve(host, tls({**files, "key": files["key"].with_name("none.pem")}), load=load)
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(files["key"])
    with pytest.raises(InvalidArgument, match="KEY_VALUES_MISMATCH"):
        await serve(host, tls(files), load=load)
    files["key"].write_text("no key")
    with pytest.raises(InvalidArgument, match="no certificate and its key"):
        await serve(host, tls(files), load=load)
    with pytest.raises(InvalidArgument):
        AsyncClient("localhost:1", ca_file=files["ca"].with_name("none.pem"))


async def test_http_is_https_then(host: FakeHost, files: dict[str, Path]) -> None:
    trusting = ssl.create_default_context(cafile=str(files["ca"]))
    async with (
        await serve(host, tls(files, http_port=0, api_keys=("secret",)), load=load) as gateway,
        aiohttp.ClientSession() as session,
    ):
        assert gateway.http_url is not None
        url = gateway.http_url.replace("127.0.0.1", "localhost") + "/v1/workflows/echo/invoke"
        key, body = {"authorization": "Bearer secret"}, {"inputs": {"x": 1}}
        async with session.post(url, json=body, headers=key, ssl=trusting) as answer:
            assert (answer.status, (await answer.json())["outputs"]) == (200, {"out": 1})
        async with session.post(url, json=body, ssl=trusting) as answer:
            assert answer.status == 401
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.post(url, json=body, headers=key)
        with pytest.raises(aiohttp.ClientError):
            await session.post(url.replace("https", "http"), json=body, headers=key)
