"""Requests in OpenAI's names, before any model sees them."""

import pytest

from dataflower.errors import Code, InvalidArgument
from dataflower.llm.params import SamplingParams
from dataflower.llm.request import ANY_OBJECT, AdapterRef, flatten, parse, sampling
from dataflower.llm.tools import plan, read

CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def params(**fields):
    return sampling(parse(CHAT | fields), max_tokens=100, temperature=1.0)


def test_defaults_are_the_stages():
    assert params() == SamplingParams(max_tokens=100, temperature=1.0)


def test_null_means_not_said():
    assert params(temperature=None, stop=None, tools=None) == params()


def test_every_field_arrives():
    got = params(
        max_tokens=50, max_completion_tokens=40, min_tokens=2, temperature=0.5, top_p=0.9, top_k=-1, seed=7, stop="END",
        stop_token_ids=[3], ignore_eos=True, logprobs=True, top_logprobs=4, presence_penalty=1, frequency_penalty=-1,
        logit_bias={"5": -100},
    )  # fmt: skip
    assert got == SamplingParams(
        max_tokens=40, min_tokens=2, temperature=0.5, top_p=0.9, top_k=0, seed=7, stop=("END",), stop_tokens=(3,),
        ignore_eos=True, logprobs=4, presence_penalty=1.0, frequency_penalty=-1.0, logit_bias={5: -100.0},
    )  # fmt: skip


def test_logprobs_in_both_dialects():
    assert params(logprobs=True).logprobs == 0
    assert params(logprobs=False).logprobs is None
    assert sampling(parse({"prompt": "x", "logprobs": 3}), max_tokens=1, temperature=0).logprobs == 3
    assert sampling(parse({"prompt": "x", "logprobs": 3, "echo": True}), max_tokens=1, temperature=0).score_from == 1


def test_response_formats():
    assert params(response_format={"type": "text"}).schema == ""
    assert params(response_format={"type": "json_object"}).schema == ANY_OBJECT
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}
    assert params(response_format=wanted).schema == '{"type": "integer"}'


def test_adapter_by_name_or_path():
    assert parse(CHAT).adapter_ref is None
    assert parse(CHAT | {"adapter": ""}).adapter_ref is None
    assert parse(CHAT | {"adapter": "a"}).adapter_ref == AdapterRef("a")
    assert parse(CHAT | {"adapter": {"name": "a", "path": "/p", "generation": 2}}).adapter_ref == AdapterRef(
        "a", "/p", 2
    )


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"temperatur": 1}, "temperatur"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"3": 101}}, "logit_bias"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"x": "y" * 70000}}}}, "65536"),
        ({"prompt": "both"}, "either"),
        ({"messages": []}, "empty"),
        ({"messages": [{"content": "no role"}]}, r"messages\[0\]"),
        ({"messages": None}, "either"),
        ({"messages": [{"role": "\ud800", "content": "Hi"}], "seed": "\ud800"}, "half a character"),
    ],
)
def test_what_is_wrong_is_named(fields, word):
    with pytest.raises(InvalidArgument, match=word) as caught:
        params(**fields)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_flatten_joins_text_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given = [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert flatten(given) == [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ]


@pytest.mark.parametrize("content", [[{"type": "image_url", "image_url": {}}], [7], 7])
def test_flatten_refuses_what_is_not_text(content):
    with pytest.raises(InvalidArgument, match=r"messages\[0\]"):
        flatten([{"role": "user", "content": content}])


def test_one_call_at_most_where_calls_may_not_be_parallel():
    tool = {"type": "function", "function": {"name": "f"}}
    said = '[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"x": 1}}]'
    for parallel, count in ((None, 2), (True, 2), (False, 1)):
        tools = plan(parse(CHAT | {"tools": [tool], "parallel_tool_calls": parallel}))
        assert len(read(said, tools)[1]) == count


@pytest.mark.parametrize("calls", [1, "x", [1], [None], [{"function": 0.5}], [{"function": "f"}]])
def test_flatten_refuses_earlier_calls_that_are_none(calls):
    with pytest.raises(InvalidArgument, match=r"messages\[0\]\.tool_calls"):
        flatten([{"role": "assistant", "tool_calls": calls}])
