"""torch.multiprocessing: queues that pass tensors by reference, a process for each stage."""

from __future__ import annotations

from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from bench.peers.protocol import Answer, serve, timed


def forward(receive: Any, send: Any) -> None:
    """A stage: hand on what came."""
    torch.set_num_threads(1)
    while True:
        send.put(receive.get())


def chain(stages: int, nbytes: int, rounds: int, warm: int) -> Answer:
    """Seconds for a chain of `stages`; the tensor is in shared memory before the clock starts."""
    spawn = multiprocessing.get_context("spawn")
    queues = [spawn.Queue() for _ in range(stages + 1)]
    ends = [(queues[i], queues[i + 1]) for i in range(stages)]
    processes = [spawn.Process(target=forward, args=pair, daemon=True) for pair in ends]
    x = torch.ones(nbytes, dtype=torch.uint8).share_memory_()
    try:
        for process in processes:
            process.start()

        def once() -> None:
            queues[0].put(x)
            assert int(queues[-1].get()[0]) == 1

        return timed(once, rounds, warm)
    finally:
        for process in processes:
            process.terminate()
            process.join()


if __name__ == "__main__":
    serve(("torch",), chain=chain)
