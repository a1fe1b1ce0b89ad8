"""iceoryx2: each stage waits for an event, takes the sample, and publishes a copy of it to the next."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from typing import Any

import iceoryx2 as iox

from bench.peers.protocol import Answer, serve, timed

Bytes = iox.Slice[ctypes.c_uint8]


class Port:
    """The way from one process to the next: a service for the bytes and one for the wake-ups."""

    def __init__(self, node: Any, name: str) -> None:
        bytes_name, event_name = iox.ServiceName.new(name), iox.ServiceName.new(f"{name}/event")
        self.bytes = node.service_builder(bytes_name).publish_subscribe(Bytes).open_or_create()
        self.event = node.service_builder(event_name).event().open_or_create()

    def writer(self, nbytes: int) -> Any:
        """A function that publishes `nbytes` from an address and wakes the reader."""
        publisher = self.bytes.publisher_builder().initial_max_slice_len(nbytes).create()
        notifier = self.event.notifier_builder().create()

        def write(address: int) -> None:
            sample = publisher.loan_slice_uninit(nbytes)
            ctypes.memmove(sample.payload_ptr, address, nbytes)
            sample.assume_init().send()
            notifier.notify()

        return write

    def reader(self) -> Any:
        """A function that waits for a sample and gives it."""
        subscriber = self.bytes.subscriber_builder().create()
        listener = self.event.listener_builder().create()

        def read() -> Any:
            while (sample := subscriber.receive()) is None:
                listener.blocking_wait()
            return sample

        return read


def make_node() -> Any:
    """A node that leaves signals alone."""
    iox.set_log_level(iox.LogLevel.Error)
    return iox.NodeBuilder.new().signal_handling_mode(iox.SignalHandlingMode.Disabled).create(iox.ServiceType.Ipc)


def forward(prefix: str, number: int, nbytes: int, ready: Any) -> None:
    """A stage."""
    node = make_node()
    read = Port(node, f"{prefix}/{number}").reader()
    write = Port(node, f"{prefix}/{number + 1}").writer(nbytes)
    ready.release()
    while True:
        sample = read()
        write(sample.payload_ptr)
        sample.delete()


def chain(stages: int, nbytes: int, rounds: int, warm: int) -> Answer:
    """Seconds for a chain of `stages`."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Semaphore(0)
    prefix = f"bench/{os.getpid()}/{stages}/{nbytes}/{os.urandom(4).hex()}"
    processes = [spawn.Process(target=forward, args=(prefix, i, nbytes, ready), daemon=True) for i in range(stages)]
    try:
        for process in processes:
            process.start()
        node = make_node()
        read = Port(node, f"{prefix}/{stages}").reader()
        write = Port(node, f"{prefix}/0").writer(nbytes)
        for _ in processes:
            ready.acquire()
        payload = (ctypes.c_uint8 * nbytes)(1)
        address = ctypes.addressof(payload)

        def once() -> None:
            write(address)
            sample = read()
            assert ctypes.c_uint8.from_address(sample.payload_ptr).value == 1
            sample.delete()

        return timed(once, rounds, warm)
    finally:
        for process in processes:
            process.kill()
            process.join()


if __name__ == "__main__":
    serve(("iceoryx2",), chain=chain)
