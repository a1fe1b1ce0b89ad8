"""Calls an Open Inference Protocol server with tritonclient over HTTP, and prints what it saw as JSON."""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.http as triton
from triton_refusal import refusal


def tensor(name: str, array: np.ndarray, datatype: str, *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def main() -> None:
    """Argument: the server's address."""
    client = triton.InferenceServerClient(sys.argv[1], concurrency=2)
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    text = np.array([b"h\xc3\xa9"], dtype=object)
    given = [tensor("x", image, "FP32")]
    in_json = [tensor("x", image, "FP32", binary=False)]
    json_out = [triton.InferRequestedOutput("out", binary_data=False)]
    result = client.infer("double", given, request_id="r7", priority=3, headers={"h": "v"})
    plain = client.infer("double", in_json, outputs=json_out)
    packed = client.infer("double", given, request_compression_algorithm="gzip", response_compression_algorithm="gzip")
    shouted = client.infer("shout", [tensor("text", text, "BYTES")])
    shouted_json = client.infer("shout", [tensor("text", text, "BYTES", binary=False)], outputs=json_out)
    frames = client.infer("frames", [tensor("n", np.array([3], np.int64), "INT64")])
    half = client.infer("same", [tensor("x", image.astype(np.float16), "FP16")])
    empty = client.infer("double", [tensor("x", np.zeros((0, 3), np.float32), "FP32")])
    listed = client.infer("same", [tensor("x", np.array([b'{"a": [1]}'], dtype=object), "BYTES")])
    later = client.async_infer("double", given)
    wrong = tensor("x", image.astype(np.float64), "FP64")
    seen = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": [client.is_model_ready(n) for n in ("double", "nope")],
        "metadata": client.get_server_metadata()["name"],
        "model": client.get_model_metadata("double", model_version="1"),
        "double": result.as_numpy("out").tolist(),
        "plain": plain.as_numpy("out").tolist(),
        "packed": packed.as_numpy("out").tolist(),
        "later": later.get_result().as_numpy("out").tolist(),
        "id": result.get_response()["id"],
        "text": [r.as_numpy("out")[0] for r in (shouted_json,)] + [shouted.as_numpy("out")[0].decode()],
        "frames": list(frames.as_numpy("out").shape),
        "half": str(half.as_numpy("out").dtype),
        "empty": list(empty.as_numpy("out").shape),
        "json": json.loads(listed.as_numpy("out")[0]),
        "unknown": refusal(client.infer, "nope", []),
        "version": refusal(client.infer, "double", given, model_version="9"),
        "dtype": refusal(client.infer, "double", [wrong]),
        "shape": refusal(client.infer, "double", [tensor("x", image.T.copy(), "FP32")]),
        "missing": refusal(client.infer, "double", []),
        "extra": refusal(client.infer, "double", [tensor("y", image, "FP32")]),
        "output": refusal(client.infer, "double", given, outputs=[triton.InferRequestedOutput("nope")]),
        "classes": refusal(client.infer, "double", given, outputs=[triton.InferRequestedOutput("out", class_count=2)]),
        "timeout": refusal(client.infer, "forever", [], timeout=50_000),
        "not_offered": refusal(client.get_model_config, "double"),
    }
    client.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
