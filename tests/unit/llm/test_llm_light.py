"""Configurations and tokenizers that are read without `transformers`: they say what `transformers` says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from dataflower.errors import InvalidArgument
from dataflower.llm.files import read_model
from dataflower.llm.rope import frequencies
from dataflower.llm.settings import LlamaSettings, read_settings
from dataflower.llm.text import token_bytes
from dataflower.llm.tokenizer import PlainTokenizer, read_tokenizer
from tests import tiny

SHAPE = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 300, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: tuple[dict[str, Any], ...] = (
    {},
    {"rope_theta": 500000.0},
    {"rope_theta": 10000},
    {"rope_scaling": None, "rope_theta": 5e5},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 128, **LLAMA3}, "rope_theta": 5e5},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 1000.0}},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3}},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "original_max_position_embeddings": 64, **LLAMA3}},
)
HEADS: tuple[dict[str, Any], ...] = (
    {}, {"num_key_value_heads": 2}, {"num_key_value_heads": None, "head_dim": 32, "tie_word_embeddings": True},
    {"eos_token_id": [2, 7], "head_dim": None},
)  # fmt: skip
TEMPLATES = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
    "{{ bos_token }}{%- for m in messages %}\n  {% if loop.index > 2 %}{% break %}{% endif %}\n{{ m['content'] | trim "
    "}}{{ eos_token }}{% endfor %}",
    "{% if tools %}{{ tools | tojson }} {{ tools | tojson(indent=2) }}{% endif %}{{ messages | length }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{{ m.reasoning_content if m.reasoning_content is defined }}{{ m.thinking or '' }}{% endfor %}{{ ns.n }}",
    "{% generation %}{{ messages[-1].content }}{% endgeneration %}{{ extra }}{{ dict(a=1) }}{{ documents }}",
    "{{ messages[0].tool_calls is defined }}{{ messages[0].content is none }}{{ strftime_now('%Y') | length }}",
)
TALK = (
    [{"role": "user", "content": "hé <b>&</b> 'x'"}],
    [{"role": "user", "content": " a "}, {"role": "assistant", "content": "b", "reasoning": "so", "tool_calls": None}],
    [{"role": "r", "content": "1"}, {"role": "q", "content": "2", "thinking": "t"}, {"role": "z", "content": "3"}],
)
TOOLS = [{"type": "function", "function": {"name": "für", "parameters": {"a": [1, 2.5, None, True]}}}]


def folder(path: Path, template: str | None = None, **more: Any) -> Path:
    """A saved byte-level tokenizer with added tokens, a sentence start, and `more` in its configuration."""
    backend = Tokenizer.from_str(tiny.tokenizer().backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.add_tokens(["<tool>", "wörd"])
    made.chat_template = template
    made.save_pretrained(path)
    (path / "config.json").write_text(json.dumps(SHAPE))
    if more:
        said = json.loads((path / "tokenizer_config.json").read_text())
        (path / "tokenizer_config.json").write_text(json.dumps(said | more))
    return path


def both(path: Path) -> tuple[PlainTokenizer, Any]:
    """Ours, and that of `transformers`."""
    ours = read_tokenizer(path)
    assert ours is not None
    return ours, AutoTokenizer.from_pretrained(path, local_files_only=True)


@pytest.mark.parametrize("rope", ROPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_a_configuration_is_read_as_transformers_reads_it(
    tmp_path: Path, rope: dict[str, Any], heads: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | heads | rope))
    theirs = AutoConfig.from_pretrained(tmp_path)
    ours = read_settings(SHAPE | heads | rope)
    assert ours is not None
    for name in LlamaSettings.__slots__:
        if name != "rope_parameters":
            assert getattr(ours, name) == getattr(theirs, name), name
    want = LlamaRotaryEmbedding(theirs)
    assert want.attention_scaling == 1.0
    for config in (ours, theirs):
        assert torch.equal(frequencies(config, tiny.CPU), want.inv_freq)


@pytest.mark.parametrize(
    "other",
    [
        {"model_type": "qwen2"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
        {"sliding_window": 8},
        {"layer_types": ["full_attention"] * 2},
        {"quantization_config": {"quant_method": "gptq"}},
        {"hidden_size": "64"},
        {"rms_norm_eps": None},
        {"eos_token_id": "2"},
        {"eos_token_id": [2, None]},
        {"head_dim": 2.5},
    ],
    ids=str,
)
def test_what_is_not_plainly_a_llama_is_left_to_transformers(other: dict[str, Any]) -> None:
    assert read_settings(SHAPE | other) is None
    assert read_settings({key: value for key, value in SHAPE.items() if key not in other} | other) is None


def test_an_absent_end_is_left_to_transformers_which_has_a_default() -> None:
    assert read_settings({key: value for key, value in SHAPE.items() if key != "eos_token_id"}) is None
    assert LlamaConfig().eos_token_id == 2


def test_tokens_and_texts_are_those_of_transformers(tmp_path: Path) -> None:
    ours, theirs = both(folder(tmp_path))
    for text in ("", " two  words\n", "é\u200b日本", "<s>a</s> <tool>x wörd", "<pad><tool", "\ud7ff\U0001f600"):
        ids = theirs(text)["input_ids"]
        assert ours(text)["input_ids"] == ids
        assert ours(text, add_special_tokens=False)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == theirs.encode(text)
        assert ours.tokenize(text) == theirs.tokenize(text)
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.decode(ours("é")["input_ids"][1:2]) == theirs.decode(theirs("é")["input_ids"][1:2]) == "\ufffd"
    assert len(ours) == len(theirs)
    everything = list(range(len(theirs) + 1))
    assert ours.convert_ids_to_tokens(everything) == [theirs.convert_ids_to_tokens(token) for token in everything]
    assert [token_bytes(ours, t) for t in everything] == [token_bytes(theirs, t) for t in everything]
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    assert (ours.eos_token_id, ours.pad_token_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert ours.special_tokens_map == theirs.special_tokens_map


@pytest.mark.parametrize("flag", [True, False])
def test_spaces_are_cleaned_up_where_transformers_does_it(tmp_path: Path, flag: bool) -> None:
    ours, theirs = both(folder(tmp_path / "bytes", clean_up_tokenization_spaces=flag))
    ids = theirs("a , b . do n't")["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids)
    words = Tokenizer(models.WordLevel({"<u>": 0, "a": 1, ",": 2, "</s>": 3}, "<u>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.WordPiece(cleanup=False)
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", clean_up_tokenization_spaces=flag)
    made.save_pretrained(tmp_path / "words")
    light = read_tokenizer(tmp_path / "words")
    assert (light is None) == flag
    assert light is None or light.decode([1, 2]) == made.decode([1, 2]) == "a ,"


@pytest.mark.parametrize("template", TEMPLATES)
def test_chats_are_rendered_as_transformers_renders_them(tmp_path: Path, template: str) -> None:
    ours, theirs = both(folder(tmp_path, template))
    for talk in TALK:
        for tools in (None, TOOLS):
            for more in ({}, {"extra": {"k": [1]}, "bos_token": "B"}, {"add_generation_prompt": True}):
                want = theirs.apply_chat_template(talk, tools=tools, tokenize=False, **more)
                assert ours.apply_chat_template(talk, tools=tools, tokenize=False, **more) == want


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ namespace(_x=1) }}",
        "{{ dict.__class__.__bases__[0] }}",
    ],
)
def test_a_template_that_refuses_or_reaches_out_fails_as_with_transformers(tmp_path: Path, template: str) -> None:
    ours, theirs = both(folder(tmp_path, template))
    with pytest.raises(jinja2.TemplateError) as want:
        theirs.apply_chat_template(TALK[0], tokenize=False)
    with pytest.raises(jinja2.TemplateError) as found:
        ours.apply_chat_template(TALK[0], tokenize=False)
    assert found.type is want.type


@pytest.mark.parametrize("more", [{"continue_final_message": True}, {"chat_template": TEMPLATES[1]}, {"padding": True}])
def test_options_of_transformers_do_what_they_do_there(tmp_path: Path, more: dict[str, Any]) -> None:
    ours, theirs = both(folder(tmp_path, TEMPLATES[0]))
    for talk in TALK:
        want = theirs.apply_chat_template(talk, tokenize=False, **more)
        assert ours.apply_chat_template(talk, **more) == want


def test_what_is_not_for_a_template_is_refused(tmp_path: Path) -> None:
    ours, _ = both(folder(tmp_path, TEMPLATES[0]))
    with pytest.raises(InvalidArgument, match="add_generation_prompt"):
        ours.apply_chat_template(TALK[0], continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(InvalidArgument, match="sanitize_control_tokens"):
        ours.apply_chat_template(TALK[0], sanitize_control_tokens=True)
    with pytest.raises(ValueError, match="at least one message"):
        ours.apply_chat_template([])
    with pytest.raises(ValueError, match="no chat template"):
        PlainTokenizer(ours.backend_tokenizer, {}, None).apply_chat_template(TALK[0])


@pytest.mark.parametrize(
    "other",
    [
        {"tokenizer_class": "Qwen2Tokenizer"},
        {"extra_special_tokens": ["<tool>"]},
        {"split_special_tokens": True},
        {"bos_token": {"content": "<s>", "special": True}},
        {"unk_token": "<new>"},
        {"unk_token": "wörd"},
        {"chat_template": [{"name": "default", "template": "x"}]},
        {"added_tokens_decoder": {"3": {"content": "x", "special": True}}},
        {"added_tokens_decoder": {"x": 1}},
        {"auto_map": {"AutoTokenizer": ["x.Y", None]}},
    ],
    ids=str,
)
def test_a_tokenizer_with_more_than_its_file_says_is_left_to_transformers(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    assert read_tokenizer(folder(tmp_path, **other)) is None


def test_listed_tokens_that_the_file_has_just_so_are_nothing_new(tmp_path: Path) -> None:
    path = folder(tmp_path)
    plain, _ = both(path)
    listed = {
        str(number): {"content": t.content, "lstrip": t.lstrip, "normalized": t.normalized, "special": t.special}
        for number, t in plain.backend_tokenizer.get_added_tokens_decoder().items()
    }
    (path / "special_tokens_map.json").write_text("{}")
    assert read_tokenizer(path) is None  # old folders say in that file what the list says in newer ones
    ours, theirs = both(folder(tmp_path, added_tokens_decoder=listed))
    text = "<s> <tool>x wörd</s>"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_a_folder_is_read_without_importing_transformers(tmp_path: Path) -> None:
    path = folder(tmp_path, TEMPLATES[0])
    (path / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    program = (
        "import sys; from dataflower.llm.files import read_model; import functions.llm; f = read_model(sys.argv[1])\n"
        "print(f.tokenizer.apply_chat_template([{'role': 'u', 'content': 'x'}]), sorted(f.ends))\n"
        "print(any(name.partition('.')[0] == 'transformers' for name in sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["u:", "x", "[2,", "9]", "False"]
    assert type(read_model(path).tokenizer) is PlainTokenizer
    (path / "config.json").write_text("[")
    with pytest.raises(InvalidArgument, match=r"config\.json is no JSON"):
        read_model(path)
