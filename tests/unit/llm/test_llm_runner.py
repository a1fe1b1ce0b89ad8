"""The runner as its callers see it: text, stops, chance, errors, cancelling."""

import asyncio
import json
import threading

import pytest
import tiny
import torch
from safetensors.torch import save_file

from dataflower.errors import Code, DataflowerError, InvalidArgument
from dataflower.llm.errors import (
    AdapterInvalid,
    AdapterNotFound,
    KvExhausted,
    NotFinite,
    PromptTooLong,
    QueueFull,
    RunnerClosed,
    SchemaInvalid,
)
from dataflower.llm.model import build
from dataflower.llm.params import SamplingParams
from dataflower.llm.runner import Runner
from dataflower.llm.sequence import FinishReason

PROMPT = tiny.prompt(1, 9)
ODD = {"model.layers.0.self_attn.q_proj": (33, 32)}
NO = {"lm": (1, 1)}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def runner():
    made = tiny.runner(tokenizer=tiny.tokenizer(), blocks=300)
    yield made
    made.close()
    made.scheduler.check()
    assert made.statistics().blocks.used == 0


def outputs(runner, prompt=PROMPT, adapter=None, **params):
    return list(runner.stream(prompt, SamplingParams(**{"max_tokens": 12} | params), adapter=adapter))


def tokens(found):
    return [output.token for output in found if output.token is not None]


def test_the_last_output_tells_how_it_ended(runner):
    *before, last = outputs(runner, ignore_eos=True)
    assert all(output.finish is None and output.usage is None for output in before)
    assert last.finish is FinishReason.LENGTH
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.cached_tokens) == (9, 12, 0)
    assert outputs(runner, ignore_eos=True)[-1].usage.cached_tokens == 8


def test_what_was_trimmed_is_computed_again(runner):
    want = tokens(outputs(runner, ignore_eos=True))
    with runner.stream(PROMPT, SamplingParams(max_tokens=40, ignore_eos=True)) as running:
        begun = [next(running), next(running)]
        runner.trim()  # nothing, while somebody generates
        assert tokens([*begun, *running])[:12] == want
    assert runner.statistics().blocks.cached > 0
    runner.trim()
    assert runner.statistics().blocks.cached == 0
    found = outputs(runner, ignore_eos=True)
    assert (tokens(found), found[-1].usage.cached_tokens) == (want, 0)
    runner.close()
    runner.trim()  # and nothing afterwards


def test_text_is_that_of_the_tokens(runner):
    found = outputs(runner)
    assert "".join(output.text for output in found) == tiny.tokenizer().decode(
        tokens(found), skip_special_tokens=True
    ).rstrip("\ufffd")


def test_a_stop_text_is_held_back_and_ends_it(runner):
    text = "".join(output.text for output in outputs(runner))
    stop = text[3:6]
    found = outputs(runner, stop=(stop, "never that"))
    assert "".join(output.text for output in found) == text[: text.index(stop)]
    assert found[-1].finish is FinishReason.STOP
    assert found[-1].stop_reason == stop


def test_a_stop_token_ends_it(runner):
    third = tokens(outputs(runner))[2]
    found = outputs(runner, stop_tokens=(third,))
    assert third not in tokens(found)
    assert found[-1].stop_reason == third
    assert len(tokens(outputs(runner, stop_tokens=(third,), min_tokens=8))) >= 7


def test_no_token_wanted(runner):
    (only,) = outputs(runner, max_tokens=0)
    assert (only.token, only.finish, only.usage.completion_tokens) == (None, FinishReason.LENGTH, 0)


def test_log_probabilities_of_answer_and_prompt(runner):
    found = outputs(runner, max_tokens=3, logprobs=4, score_from=2, ignore_eos=True)
    sequence = PROMPT + tokens(found)
    with torch.inference_mode():
        likely = tiny.reference("llama")(torch.tensor([sequence])).logits[0].log_softmax(-1)
    scores = found[0].scores
    assert [score.token for score in scores] == PROMPT[2:]
    got = [score.logprob for score in scores] + [output.logprob.logprob for output in found]
    want = likely[1:-1].gather(1, torch.tensor(sequence[2:])[:, None])[:, 0]
    assert torch.allclose(torch.tensor(got), want, atol=1e-4)
    for output in found:
        assert len(output.logprob.top) == 4
        assert output.logprob.top[0] == (output.token, pytest.approx(output.logprob.logprob))
        assert [p for _, p in output.logprob.top] == sorted((p for _, p in output.logprob.top), reverse=True)


def test_a_seed_makes_chance_repeatable_whatever_else_runs(runner):
    params = {"temperature": 1.5, "seed": 7, "ignore_eos": True}
    first = tokens(outputs(runner, **params))
    others = [runner.stream(tiny.prompt(i, 5), SamplingParams(max_tokens=9, temperature=1.0)) for i in range(3)]
    assert tokens(outputs(runner, **params)) == first
    assert tokens(outputs(runner, **params | {"seed": 8})) != first
    for other in others:
        other.close()


def test_settings_that_leave_one_token_are_greedy(runner):
    greedy = tokens(outputs(runner))
    assert tokens(outputs(runner, temperature=2.0, top_k=1)) == greedy
    assert tokens(outputs(runner, temperature=2.0, top_p=1e-9)) == greedy
    assert tokens(outputs(runner, temperature=1e-5, seed=1)) == greedy


def test_bias_and_penalties_change_the_choice(runner):
    first = tokens(outputs(runner))[0]
    assert tokens(outputs(runner, logit_bias={first: -100.0}))[0] != first
    assert set(tokens(outputs(runner, logit_bias={77: 100.0}))) == {77}
    repeated = tokens(
        outputs(runner, logit_bias={77: 5.0}, ignore_eos=True, presence_penalty=2.0, frequency_penalty=2.0)
    )
    assert repeated.count(77) < 12


def test_an_answer_follows_its_schema(runner):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22]}},
              "required": ["ok", "n"], "additionalProperties": False}  # fmt: skip
    for seed in range(3):
        found = outputs(runner, max_tokens=60, temperature=1.0, seed=seed, schema=json.dumps(schema))
        answer = json.loads("".join(output.text for output in found))
        assert isinstance(answer["ok"], bool)
        assert answer["n"] in (1, 22)
        assert found[-1].finish is FinishReason.STOP


def test_what_is_wrong_with_a_request(runner):
    cases = [
        ({"prompt": []}, InvalidArgument, Code.INVALID_ARGUMENT, "empty"),
        ({"prompt": [5, 300]}, InvalidArgument, Code.INVALID_ARGUMENT, "vocabulary"),
        ({"prompt": [5] * 1024}, PromptTooLong, Code.INVALID_ARGUMENT, "1024"),
        ({"schema": '{"type": "nothing"}'}, SchemaInvalid, Code.INVALID_ARGUMENT, "schema"),
        ({"schema": "{"}, SchemaInvalid, Code.INVALID_ARGUMENT, "schema"),
        ({"adapter": "none"}, AdapterNotFound, Code.NOT_FOUND, "none"),
    ]
    for case, kind, code, word in cases:
        with pytest.raises(kind, match=word) as caught:
            outputs(runner, **case)
        assert caught.value.code is code
    assert len(tokens(outputs(runner, ignore_eos=True))) == 12  # nobody else is hurt


def test_more_than_all_blocks_hold_is_refused():
    small = tiny.runner(blocks=4)
    with pytest.raises(KvExhausted):
        outputs(small, prompt=tiny.prompt(1, 16))
    assert outputs(small, prompt=tiny.prompt(1, 10), max_tokens=None, ignore_eos=True)[-1].usage.completion_tokens == 6
    small.close()


def test_a_full_queue_refuses():
    busy = tiny.runner(sequences=1, waiting=1)
    streams = [busy.stream(PROMPT, SamplingParams(max_tokens=200, ignore_eos=True))]
    next(streams[0])
    streams.append(busy.stream(PROMPT, SamplingParams(max_tokens=2, ignore_eos=True)))
    with pytest.raises(QueueFull):
        outputs(busy)
    streams[0].close()
    assert len(tokens(streams[1])) == 2
    busy.close()


async def test_cancelling_frees_and_leaves_the_others_alone(runner):
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    want = tokens(runner.stream(PROMPT, params))
    doomed = [runner.generate(tiny.prompt(i, 7), params) for i in range(4)]
    kept = runner.generate(PROMPT, params)

    async def read(stream):
        return [output.token async for output in stream]

    readers = [asyncio.create_task(read(stream)) for stream in doomed[:2]]
    await anext(doomed[2])
    for reader in readers:
        reader.cancel()
    doomed[2].close()
    del doomed[3], doomed[2]  # nobody holds it: that cancels, too
    assert await read(kept) == want
    await asyncio.gather(*readers, return_exceptions=True)
    assert all(reader.cancelled() for reader in readers)


def test_closing_the_runner_fails_what_is_left():
    runner = tiny.runner()
    stream = runner.stream(PROMPT, SamplingParams(max_tokens=200, ignore_eos=True))
    next(stream)
    runner.close()
    with pytest.raises(RunnerClosed):
        list(stream)
    with pytest.raises(RunnerClosed):
        runner.stream(PROMPT)
    runner.close()


def test_an_idle_runner_sleeps(runner):
    outputs(runner)
    before = runner.statistics().steps
    assert runner.statistics().steps == before
    ours = [thread.name for thread in threading.enumerate() if thread.name.startswith("llm-")]
    assert sorted(ours) == ["llm-blocks_0", "llm-runner"]


def test_statistics_hold_together_whenever_they_are_read(runner):
    for _ in runner.stream(PROMPT, SamplingParams(max_tokens=40, ignore_eos=True)):
        seen = runner.statistics()  # beside a step that is under way
        assert 0.0 <= seen.model_s <= seen.busy_s


def test_a_runner_that_is_closed_leaves_no_thread(runner):
    outputs(runner, max_tokens=20)
    runner.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("llm-")]


async def test_a_prompt_that_fails_to_come(runner):
    async def broken():
        yield [5, 6]
        raise OSError("the producer died")

    async def too_long():
        for _ in range(400):
            yield [5, 6, 7]

    async def none():
        return
        yield

    for prompt, kind, word in (
        (broken(), DataflowerError, "producer died"),
        (too_long(), PromptTooLong, "context"),
        (none(), InvalidArgument, "empty"),
    ):
        with pytest.raises(kind, match=word):
            _ = [output async for output in runner.generate(prompt, SamplingParams(max_tokens=5))]


def test_damaged_weights_fail_their_own_sequence_only(tmp_path):
    weights = {name: tensor.clone() for name, tensor in tiny.weights("llama").items()}
    weights["model.embed_tokens.weight"][50] = float("nan")
    model = build(tiny.CONFIGS["llama"], weights, dtype=torch.float32, device=tiny.CPU)
    runner = Runner(model, ends=[2], block_size=4, kv_bytes=64 * 4 * model.kv.token_bytes(torch.float32)).start()
    params = SamplingParams(max_tokens=40, ignore_eos=True, logit_bias={50: -100.0})
    want = tokens(runner.stream(PROMPT, params))
    beside = runner.stream(PROMPT, params)
    for _ in range(3):
        with pytest.raises(NotFinite):
            tokens(runner.stream([9, 50, 50, 50, 8], SamplingParams(max_tokens=5)))
    assert tokens(beside) == want
    assert tokens(runner.stream(PROMPT, params)) == want
    runner.close()


def cut_off(runner, folder):
    tiny.adapter(folder, tiny.targets("llama", "q_proj"), seed=1)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    runner.adapters.load("b", str(folder))


@pytest.mark.parametrize(
    ("kind", "act"),
    [
        (PromptTooLong, lambda runner, _: next(runner.stream(tiny.prompt(2, 2000)))),
        (KvExhausted, lambda runner, _: next(runner.stream(tiny.prompt(2, 500), SamplingParams(max_tokens=400)))),
        (AdapterInvalid, cut_off),
        (
            AdapterInvalid,
            lambda runner, folder: runner.adapters.load("b", tiny.adapter(folder, NO, seed=1)),
        ),
        (AdapterInvalid, lambda runner, folder: runner.adapters.load("b", tiny.adapter(folder, ODD, seed=1))),
        (AdapterNotFound, lambda runner, _: runner.stream(PROMPT, adapter="b")),
        (None, lambda runner, _: next(runner.stream(tiny.prompt(3, 30), SamplingParams(max_tokens=400)))),  # and leaves
    ],
)
def test_what_goes_wrong_for_one_changes_no_token_of_its_neighbour(kind, act, tmp_path):
    runner = tiny.runner(tokenizer=tiny.tokenizer(), blocks=40)
    runner.adapters.load("a", tiny.adapter(tmp_path / "a", tiny.targets("llama", "q_proj"), seed=2))
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    want = tokens(runner.stream(PROMPT, params, adapter="a"))
    neighbour = runner.stream(PROMPT, params, adapter="a")
    seen = tokens([next(neighbour)])
    for number in range(3):
        if kind is None:
            act(runner, tmp_path / f"x{number}")
            continue
        with pytest.raises(kind):
            act(runner, tmp_path / f"x{number}")
    assert seen + tokens(neighbour) == want
    runner.close()
    runner.scheduler.check()
    assert runner.statistics().blocks.used == 0


def test_adapters_that_do_not_fit(runner, tmp_path):
    good = tiny.targets("llama", "q_proj")
    name = next(iter(good))

    def broken(case, **change):
        folder = tmp_path / case
        tiny.adapter(folder, good, seed=1)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        return folder

    cut = broken("cut")
    whole = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    half = broken("half")
    save_file({f"base_model.model.{name}.lora_A.weight": torch.zeros(4, 32)}, half / "adapter_model.safetensors")
    poisoned = broken("poisoned")
    nan = torch.full((4, 32), float("nan"))
    pair = {f"base_model.model.{name}.lora_A.weight": nan, f"base_model.model.{name}.lora_B.weight": torch.zeros(32, 4)}
    save_file(pair, poisoned / "adapter_model.safetensors")
    cases = [
        (tmp_path / "absent", "adapter_config.json"),
        (cut, "damaged"),
        (half, "lora_B is missing"),
        (poisoned, "NaN"),
        (tiny.adapter(tmp_path / "shape", {name: (33, 32)}, seed=1), "do not fit"),
        (tiny.adapter(tmp_path / "module", {"model.layers.9.self_attn.q_proj": (32, 32)}, seed=1), "no such module"),
        (tiny.adapter(tmp_path / "rank", good, seed=1, rank=65), "rank 65"),
        (broken("liar", r=7), "says otherwise"),
        (broken("dora", use_dora=True), "use_dora"),
        (broken("kind", peft_type="IA3"), "not LORA"),
    ]
    runner.adapters.load("a", tiny.adapter(tmp_path / "good", good, seed=2))
    want = tokens(outputs(runner, adapter="a"))
    for path, word in cases:
        with pytest.raises(AdapterInvalid, match=word) as caught:
            runner.adapters.load("a", str(path))
        assert caught.value.code is Code.INVALID_ARGUMENT
    assert tokens(outputs(runner, adapter="a")) == want  # the old one stays
    assert runner.adapters.names() == ["a"]


def test_an_adapter_is_read_again_for_another_generation_only(runner, tmp_path):
    good = tiny.targets("llama", "v_proj")
    path = tiny.adapter(tmp_path / "a", good, seed=1)
    first = runner.adapters.ensure("a", path, 1)
    tiny.adapter(tmp_path / "a", good, seed=2)
    assert runner.adapters.ensure("a", path, 1) is first
    second = runner.adapters.ensure("a", path, 2)
    assert second.digest != first.digest
    assert runner.adapters.get("a") is second
    runner.unload("a")
    with pytest.raises(AdapterNotFound):
        runner.adapters.get("a")


def test_with_an_objective_out_of_reach_one_after_the_other_is_answered(runner):
    wanted = tokens(outputs(runner, max_tokens=12))
    careful = tiny.runner(tpot_s=1e-9)
    for _ in range(2):  # the first steps tell how long they take
        outputs(careful, max_tokens=12)
    assert careful.scheduler.places == 1
    streams = [careful.stream(PROMPT, SamplingParams(max_tokens=12)) for _ in range(5)]
    assert [tokens(list(stream)) for stream in streams] == [wanted] * 5
    assert careful.scheduler.places == 1
    careful.close()
