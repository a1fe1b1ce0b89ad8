"""Tokenizers of model folders, by the library `tokenizers` alone where `transformers` would add nothing to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from tokenizers import Tokenizer

from dataflower.errors import InvalidArgument
from dataflower.llm.template import ChatTemplate

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PLAIN = frozenset({"TokenizersBackend", "PreTrainedTokenizerFast"})
"""Classes that take `tokenizer.json` as it is. Others make parts of a tokenizer anew, each by rules of its own."""
_KNOWN = frozenset(
    {
        *NAMED, "added_tokens_decoder", "additional_special_tokens", "add_bos_token", "add_eos_token", "backend",
        "chat_template", "clean_up_tokenization_spaces", "extra_special_tokens", "is_local", "legacy",
        "local_files_only", "model_input_names", "model_max_length", "name_or_path", "padding_side",
        "tokenizer_class", "truncation_side",
    }
)  # fmt: skip
_FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True, "special": False}
_OTHER_FILES = ("added_tokens.json", "special_tokens_map.json", "additional_chat_templates", "tekken.json")
_RARE = frozenset({"sanitize_control_tokens", "return_assistant_tokens_mask"})
"""Arguments of `transformers` that mean something to it and nothing to a text."""
_SETTLED = frozenset(
    {"tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"}
)
"""Those that say how text becomes tokens, which happens elsewhere."""


class PlainTokenizer:
    """As much of a fast tokenizer of `transformers` as stages use, with the same answers."""

    def __init__(self, backend: Tokenizer, named: Mapping[str, str], template: str | None) -> None:
        """`named`: the special tokens, by their names (`eos_token`, ...)."""
        backend.no_padding()
        backend.no_truncation()
        self.backend_tokenizer = backend
        self.special_tokens_map = dict(named)
        self.chat_template = template
        self.all_special_ids = list(dict.fromkeys(backend.token_to_id(token) for token in named.values()))

    @property
    def eos_token_id(self) -> int | None:
        """The token at the end of an answer, if it is known."""
        return self._named_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """The token that stands for none, if there is one."""
        return self._named_id("pad_token")

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """The tokens of a text, as `input_ids`."""
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text."""
        return self(text, add_special_tokens)["input_ids"]

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text, as the vocabulary writes them."""
        found: list[str] = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).tokens
        return found

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def decode(self, tokens: Sequence[int] | int, skip_special_tokens: bool = False) -> str:
        """The text of tokens."""
        ids = [tokens] if isinstance(tokens, int) else list(tokens)
        text: str = self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str | None: ...
    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]: ...
    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str | None] | None:
        """How the vocabulary writes a token; None: there is no such token."""
        if isinstance(ids, int):
            piece: str | None = self.backend_tokenizer.id_to_token(ids)
            return piece
        return [self.backend_tokenizer.id_to_token(token) for token in ids]

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        **names: Any,
    ) -> str:
        """The text of a conversation (never its tokens).

        Raises:
            InvalidArgument: An option among `names` that is not for templates.
            ValueError: There is no template, or no message.
            jinja2.TemplateError: The template refused, or failed.
        """
        given = names.pop("chat_template", None)
        if given is None and self._template is None:
            raise ValueError("the model's tokenizer has no chat template")
        if tokenize:
            raise InvalidArgument("a chat template gives text; `tokenize` is not for it")
        if rare := sorted(name for name in _RARE & names.keys() if names[name]):
            raise InvalidArgument(f"{rare[0]} can't be set for a chat template")
        left = names.pop("continue_final_message", False)
        shown = {name: value for name, value in names.items() if name not in _RARE | _SETTLED}
        shown = {**self.special_tokens_map, **shown, "add_generation_prompt": add_generation_prompt}
        if left:
            return _left_open(messages, tools, given or self.chat_template, left, shown)
        template = self._template if given is None else ChatTemplate(given)
        assert template is not None
        return template.render(messages, tools, **shown)

    @cached_property
    def _template(self) -> ChatTemplate | None:
        return None if self.chat_template is None else ChatTemplate(self.chat_template)

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens_map.get(name)
        found: int | None = None if token is None else self.backend_tokenizer.token_to_id(token)
        return found


def _left_open(
    messages: Sequence[Mapping[str, Any]], tools: Any, template: Any, left: Any, shown: Mapping[str, Any]
) -> str:
    """A conversation whose last message is still to be continued. Seldom asked for: `transformers` cuts its text."""
    from transformers.utils.chat_template_utils import render_jinja_template

    if shown["add_generation_prompt"]:
        raise InvalidArgument("continue_final_message: set add_generation_prompt to false with it")
    chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
    render: Any = render_jinja_template  # its annotation says str; it gives the texts and more
    made = render([chat], tools, chat_template=template, continue_final_message=left, **shown)
    text: str = made[0][0]
    return text


def read_tokenizer(folder: Path) -> PlainTokenizer | None:
    """The tokenizer of a Llama's folder. None: `transformers` has to read this one."""
    said = _map(folder / "tokenizer_config.json")
    if said is None or not (folder / "tokenizer.json").is_file() or said.get("tokenizer_class") not in _PLAIN:
        return None
    if said.keys() - _KNOWN or said.get("additional_special_tokens") or said.get("extra_special_tokens"):
        return None
    listed = "added_tokens_decoder" in said
    if any((folder / name).exists() for name in _OTHER_FILES if not (listed and name == "special_tokens_map.json")):
        return None
    named = {name: said[name] for name in NAMED if said.get(name) is not None}
    if not all(isinstance(token, str) for token in named.values()):
        return None
    template = said.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text("utf-8")
    if not (template is None or isinstance(template, str)):
        return None
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if said.get("clean_up_tokenization_spaces") and type(backend.model).__name__ != "BPE":
        return None
    if not _complete(backend, named, said.get("added_tokens_decoder") or {}):
        return None
    return PlainTokenizer(backend, named, template)


def _complete(backend: Tokenizer, named: Mapping[str, str], listed: Mapping[str, Any]) -> bool:
    """Whether the tokenizer has all special and added tokens already, just so."""
    added = {number: _flags(token) for number, token in backend.get_added_tokens_decoder().items()}
    special = {flags["content"] for flags in added.values() if flags["special"]}
    if not special.issuperset(named.values()):
        return False
    try:
        return all(added.get(int(number)) == {**_FLAGS, **token} for number, token in listed.items())
    except (TypeError, ValueError):
        return False


def _flags(token: Any) -> dict[str, Any]:
    return {"content": token.content, **{name: getattr(token, name) for name in _FLAGS}}


def _map(path: Path) -> Mapping[str, Any] | None:
    """A JSON object; None: there is no such file, or it holds something else."""
    try:
        given = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return given if isinstance(given, dict) else None
