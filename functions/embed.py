"""Vectors of texts: all-MiniLM-L6-v2, whose vectors are close where meanings are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoTokenizer

from dataflower import checkpoint
from dataflower.checkpoint import skeleton
from dataflower.errors import InvalidArgument
from dataflower.spec.function import Json, Tensor, function
from functions import assets


class TextTooLong(InvalidArgument):
    """A text has more tokens than the model takes."""


@function(inputs={"texts": Json()}, outputs={"vectors": Tensor("FP32", ["N", "D"]), "tokens": Json()})
class Embed:
    """A vector of length 1 for each text (or list of token ids), and how many tokens each has.

    `device`: `cpu`, or `cuda:0` (with `resources: {gpu: 1}`); all containers share one copy of the weights in either
    place, as long as `dtype` is that of the model.

    The texts of a task go through the model `batch_size` at a time, those of like length together, so that little of
    the work is on padding. A vector is the mean over the tokens, as the model was trained.
    """

    def setup(  # noqa: PLR0917 - named in YAML
        self,
        model: str = "minilm",
        max_tokens: int = 256,
        batch_size: int = 32,
        truncate: bool = False,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        kind = getattr(torch, dtype, None)
        if not (isinstance(kind, torch.dtype) and kind.is_floating_point):
            raise InvalidArgument(f"dtype is {dtype!r}; it must be a floating point type of torch, such as float32")
        with checkpoint.open(assets.find(assets.MINILM) if model == "minilm" else model, device=device) as weights:
            self.tokenizer = AutoTokenizer.from_pretrained(weights.config_dir)
            self.net: Any = skeleton.build(weights, "AutoModel").to(kind)
            self.device = torch.device(weights.torch_device)
        self.max_tokens, self.batch_size, self.truncate = max_tokens, batch_size, truncate

    def __call__(self, texts: Sequence[str | list[int]]) -> Mapping[str, Any]:
        ids = [self._ids(index, text) for index, text in enumerate(texts)]
        vectors = torch.empty(len(ids), self.net.config.hidden_size)
        for batch in self._batches(ids):
            vectors[batch] = self._vectors([ids[index] for index in batch])
        return {"vectors": vectors, "tokens": [len(one) for one in ids]}

    def _ids(self, index: int, text: str | list[int]) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"] if isinstance(text, str) else text
        if any(not 0 <= token < self.net.config.vocab_size for token in ids):
            raise InvalidArgument(f"text {index} holds a token id that the model does not have")
        if len(ids) <= self.max_tokens:
            return ids
        if not self.truncate:
            raise TextTooLong(f"text {index} has {len(ids)} tokens, the model takes {self.max_tokens}")
        return [*ids[: self.max_tokens - 1], ids[-1]]  # the last one says that the text ends

    def _batches(self, ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        by_length = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        for start in range(0, len(by_length), self.batch_size):
            yield by_length[start : start + self.batch_size]

    @torch.inference_mode()
    def _vectors(self, ids: Sequence[list[int]]) -> torch.Tensor:
        longest = max(map(len, ids))
        padded = [one + [self.tokenizer.pad_token_id] * (longest - len(one)) for one in ids]
        tokens = torch.tensor(padded, device=self.device)
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids], device=self.device)
        states = self.net(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(means).cpu()
