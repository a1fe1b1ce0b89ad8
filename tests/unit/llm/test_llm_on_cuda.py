"""The fast path over weights on a CUDA device, without one: torch keeps the books of devices, and no values."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig

from dataflower.llm import llama, parts
from dataflower.llm.kv import KvStore

CUDA = torch.device("cuda:0")
CONFIG = LlamaConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)


def weights() -> dict[str, torch.Tensor]:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device=CUDA)

    found = {"model.embed_tokens.weight": empty(320, 64), "lm_head.weight": empty(320, 64)}
    found["model.norm.weight"] = empty(64)
    for layer in range(2):
        name = f"model.layers.{layer}"
        found |= {f"{name}.self_attn.{part}_proj.weight": empty(64, 64) for part in "qo"}
        found |= {f"{name}.self_attn.{part}_proj.weight": empty(32, 64) for part in "kv"}
        found |= {f"{name}.mlp.{part}_proj.weight": empty(128, 64) for part in ("gate", "up")}
        found[f"{name}.mlp.down_proj.weight"] = empty(64, 128)
        found |= {f"{name}.{part}_layernorm.weight": empty(64) for part in ("input", "post_attention")}
    return found


def test_weights_on_a_device_are_bound_where_they_lie() -> None:
    with FakeTensorMode():
        given = weights()
        plain = parts.Plain(given, torch.bfloat16, CUDA, packed=True)
        model = llama.LlamaModel(CONFIG, plain, dtype=torch.bfloat16, device=CUDA)
        used = [model.norm, *model.head.weights]
        for layer in model.layers:
            used += [layer.norm, layer.mlp_norm]
            for linear in (layer.qkv, layer.out, layer.gate_up, layer.down):
                used += linear.weights
                assert not linear.packed
        assert len(used) == len(given) - 1
        assert {id(tensor) for tensor in used} <= {id(tensor) for tensor in given.values()}
        assert model.frequencies.device == CUDA
        assert model.fused is None
        store = KvStore(model.kv, 16, 16, torch.bfloat16, CUDA)
        assert store.dense.device == CUDA
        store.close()
