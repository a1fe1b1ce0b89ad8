"""Language models as stages of a workflow: many invocations in one batch, adapters, streamed prompts, failures."""

import asyncio
from pathlib import Path

import pytest
import tiny

from dataflower.config.sources import load_text
from dataflower.errors import Code, InvocationFailed
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig

ROOT = str(Path(__file__).parents[2])
FILE = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {{name: tiny}}
inputs: {{{port}: {kind}}}
stages:
  only:
    function: functions.llm:{function}
    inputs: {{{port}: inputs.{port}}}
    params: {params}
    scaling: {{max_replicas: 1, max_ongoing_requests: 4}}
    credit: {{items: 64}}
outputs: {{out: only.{out}}}
"""

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model as `save_pretrained` makes it."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(path)
    net = tiny.reference("llama")
    net.generation_config.eos_token_id = 2
    net.save_pretrained(path)
    return path


def workflow(function, port, out, **params):
    kind = "json" if port == "request" else "{type: string, stream: true}"
    text = FILE.format(function=function, port=port, kind=kind, out=out, params=params)
    return load_text(text, "tiny.yaml", code_path=[ROOT])


def asks(text, **fields):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12} | fields


def tokens(outputs):
    return [token for item in outputs["out"] for token in item.get("tokens", [])]


async def test_invocations_share_a_model(folder, tmp_path):
    adapter = tiny.adapter(tmp_path / "a", tiny.targets("llama", "q_proj", "v_proj"), seed=1)
    served = workflow("Complete", "request", "deltas", model=str(folder), dtype="float32", adapters={"a": adapter})
    texts = ["one", "another", "and a third", "x"]
    want = [tiny.greedy(tiny.reference("llama"), tiny.tokenizer()(text)["input_ids"], 12) for text in texts]
    async with Runtime(HostConfig(code_path=(ROOT,), cpus=2, readable_paths=(str(tmp_path),))) as host:
        await host.apply(served, "tiny")

        async def ask(text, **fields):
            return await (await host.invoke("tiny", {"request": asks(text, **fields)})).result()

        first = await host.invoke("tiny", {"request": asks(texts[0])})
        assert tokens(await first.result()) == want[0]
        assert first.trace is not None
        (told,) = first.trace.tasks
        phases = {"import", "setup", "weights", "map", "model", "adapter", "warm-up"}
        assert told.cold
        assert told.start.keys() == phases
        assert 0 < sum(told.start[part] for part in phases - {"import", "setup"}) <= told.start["setup"]
        answers = await asyncio.gather(*(ask(text) for text in texts))
        assert [tokens(answer) for answer in answers] == want
        assert host.workflow("tiny").stages[0].done == len(texts) + 1
        assert tokens(await ask(texts[0], adapter="a")) != want[0]

        with pytest.raises(InvocationFailed) as wrong:
            await ask("x", adapter="none")
        assert (wrong.value.failure.code, wrong.value.failure.kind) == (Code.NOT_FOUND, "AdapterNotFound")
        with pytest.raises(InvocationFailed) as wrong:
            await ask("x", temperature="hot")
        assert wrong.value.failure.code is Code.INVALID_ARGUMENT
        assert "temperature" in wrong.value.failure.message

        left = await host.invoke("tiny", {"request": asks("y", max_tokens=900, ignore_eos=True)})
        async for _ in left.outputs():
            break  # the client goes away
        assert tokens(await ask(texts[1])) == want[1]


async def test_a_prompt_that_another_stage_is_still_writing(folder):
    served = workflow("Continue", "pieces", "text", model=str(folder), dtype="float32", max_new_tokens=12)
    pieces = ["once ", "upon ", "a time"]
    whole = tiny.tokenizer()("".join(pieces))["input_ids"]
    async with Runtime(HostConfig(code_path=(ROOT,), cpus=2)) as host:
        await host.apply(served, "tiny")
        answer = await (await host.invoke("tiny", {"pieces": pieces})).result()
    want = tiny.tokenizer().decode(tiny.greedy(tiny.reference("llama"), whole, 12), skip_special_tokens=True)
    assert "".join(answer["out"]) == want.rstrip("\ufffd")


SHARED = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {{name: {name}, owner: {owner}}}
inputs: {{request: json}}
stages:
  only:
    function: functions.llm:Complete
    inputs: {{request: inputs.request}}
    model: {model}
    {adapter}
    isolation: {isolation}
    params: {{dtype: float32, temperature: 0}}
    scaling: {{max_replicas: 1, max_ongoing_requests: 8}}
    credit: {{items: 64}}
outputs: {{out: only.deltas}}
"""


@pytest.mark.timeout(200)  # eight starts of a container
async def test_functions_of_an_owner_share_a_batch_and_say_what_they_would_say_alone(folder, tmp_path):
    targets = tiny.targets("llama", "q_proj", "v_proj")
    paths = {name: tiny.adapter(tmp_path / name, targets, seed=seed) for seed, name in enumerate(("one", "two"), 1)}
    paths |= {"bare": "", "gone": str(tmp_path / "gone")}
    texts = ["one", "another", "and a third"]

    async def say(isolation):
        async with Runtime(HostConfig(code_path=(ROOT,), cpus=2, readable_paths=(str(tmp_path),))) as host:
            for name, path in paths.items():
                adapter = f"adapter: {path}" if path else ""
                text = SHARED.format(name=name, owner="acme", model=folder, adapter=adapter, isolation=isolation)
                await host.apply(load_text(text, "shared.yaml", code_path=[ROOT]), text)

            async def ask(name, text):
                return tokens(await (await host.invoke(name, {"request": asks(text)})).result())

            names = ("one", "two", "bare")
            said = await asyncio.gather(*(ask(name, text) for name in names for text in texts))
            stages = {name: host.workflow(name).stages[0] for name in names}
            containers = len(host.container_pids())
            with pytest.raises(InvocationFailed) as wrong:  # whose adapter is not there has no part in it
                await ask("gone", texts[0])
            assert await ask("one", texts[0]) == said[0]
            if isolation == "shared":
                assert (wrong.value.failure.code, wrong.value.failure.kind) == (Code.NOT_FOUND, "AdapterNotFound")
                tiny.adapter(tmp_path / "new", targets, seed=7)  # a new version brings another adapter of that name
                text = SHARED.format(
                    name="one", owner="acme", model=folder, adapter=f"adapter: {tmp_path / 'new'}", isolation="shared"
                )
                await host.apply(load_text(text, "shared.yaml", code_path=[ROOT]), text)
                assert await ask("one", texts[0]) != said[0]
                assert await ask("two", texts[0]) == said[len(texts)]
            return said, stages, containers

    apart, _, many = await say("sandbox")
    shared, stages, one = await say("shared")
    assert shared == apart
    assert len({tuple(answer) for answer in (apart[0], apart[3], apart[6])}) == 3  # the adapters do something
    assert (many, one) == (3, 1)
    assert stages["one"].pool == "acme/shared-1"
    assert stages["one"].shares == ("bare/only", "gone/only", "two/only")
    assert stages["one"].done == len(texts) * 3
