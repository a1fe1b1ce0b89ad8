"""The chat stage: requests in, deltas out."""

import json

import pytest
import tiny

from dataflower.errors import InvalidArgument
from dataflower.llm import tools as tooling
from dataflower.llm.chat import ChatStage
from dataflower.llm.errors import AdapterNotFound
from dataflower.llm.request import parse
from dataflower.llm.text import TextStream, earliest, pending, token_bytes
from functions import llm

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"day": {"enum": ["mon", "tue"]}}, "required": ["day"]},
    },
}
HELLO = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0}


@pytest.fixture(scope="module")
def stage():
    runner = tiny.runner(tokenizer=tiny.tokenizer(), blocks=200)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    yield ChatStage(runner, tokenizer, max_tokens=10)
    runner.close()


async def answer(stage, **fields):
    return [delta async for delta in stage.answer(HELLO | fields)]


def text_of(items):
    return "".join(item.get("text", "") for item in items)


async def test_items_account_for_all_tokens_and_end_with_usage(stage):
    items = await answer(stage, ignore_eos=True)
    assert sum(len(item.get("tokens", [])) for item in items) == 10
    assert all(item.get("text") for item in items[:-1])
    assert items[-1]["finish_reason"] == "length"
    prompt = len(stage.prompt(parse(HELLO)))
    assert items[-1]["usage"] | {"cached_tokens": 0} == {
        "prompt_tokens": prompt, "completion_tokens": 10, "cached_tokens": 0,
    }  # fmt: skip
    assert not any("finish_reason" in item for item in items[:-1])


async def test_log_probabilities_name_tokens_and_bytes(stage):
    items = await answer(stage, logprobs=True, top_logprobs=2, ignore_eos=True)
    likely = [entry for item in items for entry in item.get("logprobs", [])]
    assert [entry["token"] for entry in likely] == [token for item in items for token in item.get("tokens", [])]
    assert all(len(entry["top"]) == 2 and entry["logprob"] <= 0 for entry in likely)
    assert all(bytes(entry["bytes"]).decode(errors="replace") == entry["text"] for entry in likely)
    json.dumps(items)  # plain values only


async def test_a_prompt_is_continued_as_it_is_and_echoed(stage):
    plain = {"messages": None, "prompt": "abc", "max_tokens": 2, "ignore_eos": True}
    items = await answer(stage, **plain, echo=True, logprobs=1)
    assert items[0]["text"] == "abc"
    assert [entry["text"] for entry in items[0]["logprobs"]] == ["a", "b", "c"]
    assert items[0]["logprobs"][0]["logprob"] is None
    assert items[0]["logprobs"][1]["logprob"] < 0
    again = await answer(stage, **plain | {"prompt": tiny.tokenizer()("abc")["input_ids"]})
    assert [i.get("tokens") for i in again] == [i.get("tokens") for i in items[1:]]
    (only,) = await answer(stage, **plain | {"max_tokens": 0})
    assert only["finish_reason"] == "length"
    whole = await answer(stage, **plain, echo=True)
    assert whole[0] == {"text": "abc", "tokens": tiny.tokenizer()("abc")["input_ids"]}


async def test_leaving_while_a_delta_waits_to_be_taken_ends_the_generation(stage):
    complete = llm.Complete()
    complete.stage = stage
    deltas = complete(HELLO | {"max_tokens": 900, "ignore_eos": True})
    await anext(deltas)
    await deltas.aclose()
    await answer(stage, max_tokens=1)
    assert stage.runner.statistics().running == 0


async def test_a_forced_call_arrives_whole(stage):
    wanted = {"type": "function", "function": {"name": "weather"}}
    items = await answer(stage, tools=[TOOL], tool_choice=wanted, max_tokens=200)
    assert text_of(items) == ""
    assert items[-1]["finish_reason"] == "tool_calls"
    (call,) = items[-1]["tool_calls"]
    assert call["name"] == "weather"
    assert json.loads(call["arguments"]).keys() == {"day"}


async def test_adapters_by_name_and_by_path(stage, tmp_path):
    path = tiny.adapter(tmp_path / "a", tiny.targets("llama", "q_proj", "v_proj"), seed=3)
    bare = await answer(stage, ignore_eos=True)
    with pytest.raises(AdapterNotFound):
        await answer(stage, adapter="a")
    tuned = await answer(stage, adapter={"name": "a", "path": path, "generation": 1}, ignore_eos=True)
    assert text_of(tuned) != text_of(bare)
    assert text_of(await answer(stage, adapter="a", ignore_eos=True)) == text_of(tuned)


def test_tools_are_told_of_where_the_template_has_no_place_for_them(stage):
    request = parse(HELLO | {"tools": [TOOL]})
    text = tiny.tokenizer().decode(stage.prompt(request, tooling.plan(request)))
    assert text.startswith("<system>You have access")
    assert '"weather"' in text
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": '{"day": "mon"}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]  # fmt: skip
    text = tiny.tokenizer().decode(stage.prompt(parse({"messages": history})))
    assert '<assistant><tool_call>[{"name": "weather", "arguments": {"day": "mon"}}]</tool_call>' in text
    assert "<tool>rain" in text


@pytest.mark.parametrize(
    ("text", "before", "calls"),
    [
        ('<tool_call>[{"name": "weather", "arguments": {"day": "mon"}}]</tool_call>', "", 1),
        ('Let me see. <tool_call>{"name": "weather", "arguments": {}}</tool_call>', "Let me see.", 1),
        ('<tool_call>{"name": "weather", "arguments": {}}</tool_call><tool_call>{"name": "weather", "parameters": {}}',
         "", 2),
        ('{"name": "weather", "arguments": {}}', "", 1),
        ('{"name": "unknown", "arguments": {}}', '{"name": "unknown", "arguments": {}}', 0),
        ("It will rain.", "It will rain.", 0),
        ('<tool_call>{"name": ', '<tool_call>{"name": ', 0),
        ("[1, 2]", "[1, 2]", 0),
        ('{"name": [], "arguments": {}}', '{"name": [], "arguments": {}}', 0),
        ("[" * 100_000, "[" * 100_000, 0),
    ],
)  # fmt: skip
def test_calls_are_read_out_of_the_text(text, before, calls):
    got, found = tooling.read(text, tooling.plan(parse(HELLO | {"tools": [TOOL]})))
    assert (got, len(found)) == (before, calls)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"tools": [{"type": "other"}]}, r"tools\[0\]"),
        ({"tools": [{"type": "function", "function": {"name": ["f"]}}]}, r"tools\[0\]"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": [[]]}}]}, r"tools\[0\].*parameters"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": ["f"]}}}, "none of the tools"),
        ({"tool_choice": "required"}, "there are none"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "none of the tools"),
    ],
)
def test_what_is_wrong_with_tools(fields, word):
    with pytest.raises(InvalidArgument, match=word):
        tooling.plan(parse(HELLO | fields))


def test_a_beginning_that_could_be_a_call_is_held():
    assert all(tooling.may_be_call(text) for text in ("", " ", "{", "[", "<", "<tool_", "<tool_call>{"))
    assert not any(tooling.may_be_call(text) for text in ("It", "<b", "a {"))


def test_stop_texts_across_tokens():
    assert earliest("abcd", ("cd", "bc")) == (1, "bc")
    assert earliest("ab", ("abc",)) == (2, None)
    assert pending("xab", ("abc", "b!")) == 2
    stream = TextStream(tiny.tokenizer(), [], ("lo w",))
    said = [stream.push(token) for token in tiny.tokenizer()("hello world")["input_ids"]]
    assert "".join(said) == "hel"
    assert stream.stopped_by == "lo w"
    held = TextStream(tiny.tokenizer(), [], ("lo w",))
    assert "".join(held.push(token) for token in tiny.tokenizer()("hello")["input_ids"]) == "hel"
    assert held.flush() == "lo"


def test_text_of_a_prompt_that_ends_within_a_character_stays_out():
    ids = tiny.tokenizer()("añb")["input_ids"]
    stream = TextStream(tiny.tokenizer(), ids[:2])
    assert stream.push(ids[3]) == "b"


def test_bytes_of_tokens():
    tokenizer = tiny.tokenizer()
    ids = tokenizer("é b")["input_ids"]
    assert b"".join(token_bytes(tokenizer, token) for token in ids) == "é b".encode()
    assert token_bytes(tokenizer, 2) == b"</s>"


@pytest.mark.parametrize("dtype", ["float99", "int8", "nn"])
def test_what_nothing_is_computed_in_is_refused_before_weights_are_looked_for(dtype: str) -> None:
    with pytest.raises(InvalidArgument, match=f"dtype is '{dtype}'; it must be bfloat16"):
        llm.start("nowhere", dtype)
