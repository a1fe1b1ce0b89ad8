"""GGUF files, turned once into what everything else here reads: a folder with bf16 safetensors and a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataflower.errors import FailedPrecondition, WeightsInvalid

MAGIC = b"GGUF"


def convert(path: Path, into: Path) -> None:
    """Write the model of a GGUF file into the folder `into`, which is there and empty.

    Every architecture that transformers reads from GGUF is converted; the Llama family without the detour through fp32.

    Raises:
        WeightsInvalid: it is no GGUF file, or cut off, or of an architecture that can't be read.
        FailedPrecondition: a library is missing; the message says which.
    """
    with open(path, "rb") as file:
        if file.read(4) != MAGIC:
            raise WeightsInvalid(f"{path}: this is no GGUF file")
    try:
        import gguf
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise FailedPrecondition(f"{error.name} is missing: pip install 'dataflower[llm]'") from None
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise WeightsInvalid(f"{path}: the GGUF file can't be read ({error}): cut off, or damaged") from error
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        _tokenizer(path, reader).save_pretrained(into)
        model = _llama(path, reader) if _field(reader, "general.architecture") == "llama" else _any(path)
    except Exception as error:  # the libraries that read the file have errors of many kinds, down to the plainest
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise WeightsInvalid(f"{path}: can't convert it: {why}") from error
    _name_tokens(model, reader)
    model.save_pretrained(into)


def _field(reader: Any, name: str) -> Any:
    """A value of the file's metadata, None if it says nothing."""
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _tokenizer(path: Path, reader: Any) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if _field(reader, "tokenizer.ggml.pre") == "smollm":  # transformers does not know it: digits are split one by one
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _name_tokens(model: Any, reader: Any) -> None:
    import torch

    model.config.dtype = torch.bfloat16
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number = _field(reader, f"tokenizer.ggml.{theirs}_token_id")
        if number is not None:
            setattr(model.generation_config, f"{ours}_token_id", int(number))


def _any(path: Path) -> Any:
    """As transformers reads it; then as if it had never been quantised, or it would refuse to save it."""
    import torch
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    config = type(read.config).from_dict(
        {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    )
    with torch.device("meta"):
        model = type(read)(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model


def _llama(path: Path, reader: Any) -> Any:
    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    read = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    weights = _llama_weights(reader, read["num_attention_heads"], read["num_key_value_heads"])
    tied = "lm_head.weight" not in weights
    config = LlamaConfig(**{key: read[key] for key in read if key in _CONFIG}, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    if tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model


def _llama_weights(reader: Any, heads: int, kv_heads: int) -> dict[str, Any]:
    """Weights in bf16, under the names and in the order that transformers gives them."""
    import torch
    from gguf.quants import dequantize

    weights = {}
    for tensor in reader.tensors:
        first, _, rest = tensor.name.removesuffix(".weight").partition(".")
        if first == "rope_freqs":  # what the configuration says already
            continue
        value = dequantize(tensor.data, tensor.tensor_type)
        if first == "blk":
            number, _, part = rest.partition(".")
            for rotated, count in (("attn_q", heads), ("attn_k", kv_heads)):
                if part == rotated:  # GGUF interleaves the two halves that rotary embedding pairs up
                    value = value.reshape(count, -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
            name = f"model.layers.{number}.{_LAYER[part]}"
        else:
            name = _OUTSIDE[first]
        weights[f"{name}.weight"] = torch.tensor(value).to(torch.bfloat16)
    return weights


_CONFIG = frozenset(
    (
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_parameters",
        "vocab_size",
        "bos_token_id",
        "eos_token_id",
    )
)
"""What the configuration takes over from the GGUF file; the rest is its defaults."""
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names -> transformers'."""
