"""Calls an Open Inference Protocol server with tritonclient, and prints what it saw as JSON.

A program of its own: a process can hold either tritonclient's descriptors of package `inference` or ours.
"""

from __future__ import annotations

import json
import sys
import threading

import numpy as np
import tritonclient.grpc as triton
from triton_refusal import refusal


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    """An input with raw contents, as tritonclient always sends them."""
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def main() -> None:
    """Argument: the server's address."""
    client = triton.InferenceServerClient(sys.argv[1])
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = client.infer("double", [tensor("x", image, "FP32")], request_id="r7", priority=3, headers={"h": "v"})
    text = client.infer("shout", [tensor("text", np.array([b"h\xc3\xa9"], dtype=object), "BYTES")])
    frames = client.infer("frames", [tensor("n", np.array([3], np.int64), "INT64")])
    half = client.infer("same", [tensor("x", image.astype(np.float16), "FP16")])
    listed = client.infer("same", [tensor("x", np.array([b'{"a": [1]}'], dtype=object), "BYTES")])
    done = threading.Event()
    hung = client.async_infer("forever", [], callback=lambda result, error: done.set())
    hung.cancel()
    wrong = tensor("x", image.astype(np.float64), "FP64")
    seen = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": [client.is_model_ready(n) for n in ("double", "nope")],
        "metadata": client.get_server_metadata(as_json=True)["name"],
        "model": client.get_model_metadata("double", as_json=True),
        "double": result.as_numpy("out").tolist(),
        "id": result.get_response().id,
        "text": text.as_numpy("out")[0].decode(),
        "frames": list(frames.as_numpy("out").shape),
        "half": str(half.as_numpy("out").dtype),
        "json": json.loads(listed.as_numpy("out")[0]),
        "unknown": refusal(client.infer, "nope", []),
        "version": refusal(client.infer, "double", [tensor("x", image, "FP32")], model_version="9"),
        "dtype": refusal(client.infer, "double", [wrong]),
        "shape": refusal(client.infer, "double", [tensor("x", image.T.copy(), "FP32")]),
        "missing": refusal(client.infer, "double", []),
        "extra": refusal(client.infer, "double", [tensor("y", image, "FP32")]),
        "output": refusal(
            client.infer, "double", [tensor("x", image, "FP32")], outputs=[triton.InferRequestedOutput("nope")]
        ),
        "timeout": refusal(client.infer, "forever", [], timeout=50_000),
        "client_timeout": refusal(client.infer, "forever", [], client_timeout=0.05),
        "not_offered": refusal(client.get_model_config, "double"),
        "cancelled": done.wait(10),
    }
    client.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
