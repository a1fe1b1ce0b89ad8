"""A zygote in small for bench.load: imports the libraries once, then forks a process for each line that names a model.

The child attaches the model and builds it, and says how long it took since the line came: fork included.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    from dataflower import checkpoint
    from dataflower.checkpoint import skeleton

    import torch  # noqa: F401  isort:skip
    from transformers import AutoModelForCausalLM  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        began = time.monotonic()
        pid = os.fork()
        if not pid:
            weights = checkpoint.open(line.strip())
            attached = time.monotonic()
            model = skeleton.build(weights)
            done = time.monotonic()
            parameters = sum(p.numel() for p in model.parameters())
            print(json.dumps({"attach_s": attached - began, "ready_s": done - began, "parameters": parameters}))
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(pid, 0)
