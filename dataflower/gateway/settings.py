"""What can be set about a gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Where and how the front door listens."""

    address: str = "127.0.0.1"
    """Interface; loopback unless told otherwise."""
    port: int = 8001
    """0 picks a free one."""
    max_message_bytes: int = 64 * MIB
    """Longest message taken or sent; a longer one is RESOURCE_EXHAUSTED."""
    tls_cert_file: Path | None = None
    """PEM certificate chain; with `tls_key_file`, calls must use TLS."""
    tls_key_file: Path | None = None
    api_keys: tuple[str, ...] = ()
    """If any, every call but health must carry one as `authorization: Bearer KEY`."""
    admin_keys: tuple[str, ...] = ()
    """Keys that may also load and unload adapters over HTTP; without any, nobody may."""
    http_port: int | None = None
    """Port of HTTP on the same interface; 0 picks a free one, None does without."""
    http_allowed_hosts: tuple[str, ...] = ()
    """Names that requests may be addressed to; `*` is any. None given: on loopback its own names, elsewhere any."""
    http_allowed_origins: tuple[str, ...] = ()
    """Web sites whose pages may call, such as `https://chat.example`; `*` is all."""
    reflection: bool = True
    """Whether tools may ask for the descriptors of the services."""
    state_dir: Path | None = None
    """Where adapters that clients load are kept for the next server; None: nowhere."""
