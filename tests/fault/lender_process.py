"""A host in a process of its own that lends containers: `python lender_process.py PORT [NAME]`; says its port."""

from __future__ import annotations

import asyncio
import sys

from hosts_rig import config

from dataflower.host.runtime import Runtime


async def main() -> None:
    async with Runtime(config(peer_port=int(sys.argv[1]), host_name=(sys.argv[2:] or ["b"])[0])) as host:
        print(host.peer_port, flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
