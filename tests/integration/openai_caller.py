"""Calls an OpenAI-compatible server with the `openai` package, and prints what it saw as JSON."""

from __future__ import annotations

import json
import sys

import openai
from openai import OpenAI

HELLO = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def refusal(call: object, *args: object, **kwargs: object) -> list[object]:
    """Class, status and code of an error."""
    try:
        call(*args, **kwargs)  # type: ignore[operator]
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.param]
    except openai.APIError as error:
        return [type(error).__name__, None, error.code, error.message]
    return []


def main() -> None:
    """Arguments: base URL, key."""
    client = OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)
    chat = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, top_logprobs=1)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, stream=True, stream_options=options))
    called = client.chat.completions.create(model="tiny", messages=HELLO, tools=[TOOL], tool_choice="required")
    text = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=2)
    words = [c.choices[0].text for c in client.completions.create(model="tiny", prompt="a", stream=True)]
    vectors = client.embeddings.create(model="embed", input=["one", "three"])

    def broken() -> None:
        said = [{"role": "user", "content": "broken"}]
        for _ in client.chat.completions.create(model="tiny", messages=said, stream=True):
            pass

    with client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "endless"}], stream=True
    ) as stream:
        left = next(iter(stream)).id.removeprefix("chatcmpl-")
    stranger = OpenAI(base_url=sys.argv[1], api_key="wrong", max_retries=0)
    create = client.chat.completions.create
    seen = {
        "models": {model.id: getattr(model, "parent", None) for model in client.models.list()},
        "text": chat.choices[0].message.content,
        "reason": chat.choices[0].finish_reason,
        "usage": [
            chat.usage.prompt_tokens,
            chat.usage.completion_tokens,
            chat.usage.prompt_tokens_details.cached_tokens,
        ],
        "logprob": chat.choices[0].logprobs.content[0].logprob,
        "streamed": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
        "streamed_usage": chunks[-1].usage.total_tokens,
        "tool": json.loads(called.choices[0].message.tool_calls[0].function.arguments),
        "texts": [choice.text for choice in text.choices],
        "words": "".join(words),
        "vectors": [data.embedding for data in vectors.data],
        "unknown": refusal(create, model="tony", messages=HELLO),
        "bad": refusal(create, model="tiny", messages=HELLO, temperature=-1),
        "too_long": refusal(create, model="tiny", messages=[{"role": "user", "content": "long"}]),
        "full": refusal(create, model="tiny", messages=[{"role": "user", "content": "full"}]),
        "broken": refusal(broken),
        "key": refusal(stranger.models.list),
        "left": left,
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
