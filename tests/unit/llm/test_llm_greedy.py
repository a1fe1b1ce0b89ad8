"""Greedy output equals that of `transformers`, token for token, in fp32, however it is batched or interrupted."""

import asyncio
from pathlib import Path

import pytest
import tiny
import torch
from peft import PeftModel
from transformers import Qwen2Config

from dataflower.llm import opaque
from dataflower.llm.embedding import tied
from dataflower.llm.errors import UnsupportedModel
from dataflower.llm.linear import lay_out
from dataflower.llm.llama import LlamaModel
from dataflower.llm.model import build, record
from dataflower.llm.params import SamplingParams

TOKENS = 24
LENGTHS = (1, 5, 33, 18, 60, 4, 9, 27)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generate(runner, prompts, adapters=None, **params):
    """All at once; the tokens of each."""
    adapters = adapters or [None] * len(prompts)
    wanted = SamplingParams(**{"max_tokens": TOKENS} | params)
    streams = [runner.stream(p, wanted, adapter=a) for p, a in zip(prompts, adapters, strict=True)]
    return [[o.token for o in stream if o.token is not None] for stream in streams]


def check(runner):
    runner.close()  # its thread may still be putting away what it has just handed out
    runner.scheduler.check()
    assert runner.statistics().blocks.used == 0


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_batched_and_alone(name):
    prompts = [tiny.prompt(i, length) for i, length in enumerate(LENGTHS)]
    want = [tiny.greedy(tiny.reference(name), p, TOKENS) for p in prompts]
    assert name == "qwen2" or len({token for tokens in want for token in tokens}) > 30
    runner = tiny.runner(name, blocks=200)
    assert generate(runner, prompts) == want  # all in one batch, prompts in pieces beside decodes
    assert runner.statistics().preemptions == 0
    assert generate(runner, prompts[:3]) == want[:3]  # out of the prefix cache
    assert runner.statistics().blocks.found_tokens > 0
    check(runner)
    alone = tiny.runner(name)
    assert [generate(alone, [p])[0] for p in prompts[:3]] == want[:3]
    check(alone)


def test_which_take_the_fast_path():
    fast = {name for name in tiny.CONFIGS if isinstance(tiny.model(name), LlamaModel)}
    assert fast == {"llama", "llama3", "qwen2"}


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_after_preemption(name):
    prompts = [tiny.prompt(i, 12) for i in range(4)]
    want = [tiny.greedy(tiny.reference(name), p, TOKENS) for p in prompts]
    runner = tiny.runner(name, blocks=16)
    assert generate(runner, prompts) == want
    assert runner.statistics().preemptions > 0
    check(runner)


def test_prompts_in_the_smallest_pieces():
    prompts = [tiny.prompt(i, 20) for i in range(3)]
    want = [tiny.greedy(tiny.reference("llama"), p, TOKENS) for p in prompts]
    runner = tiny.runner("llama", step_tokens=5, sequences=4)
    assert generate(runner, prompts) == want
    check(runner)


def test_weights_left_where_they_are():
    model = tiny.model("llama", packed=False)
    given = tiny.weights("llama")["model.embed_tokens.weight"]
    assert model.embedding.weight.data_ptr() == given.data_ptr()
    owned = {t.data_ptr() for t in tiny.weights("llama").values()}
    assert all(w.data_ptr() in owned for layer in model.layers for w in (*layer.qkv.weights, *layer.gate_up.weights))
    tokens = torch.tensor(tiny.prompt(1, 9))
    assert torch.allclose(last_logits(model, tokens), last_logits(tiny.model("llama"), tokens), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_were_laid_out_before(name, dtype):
    written = {}
    note = record(tiny.CONFIGS[name], tiny.weights(name), dtype, lambda name, t: written.update({name: t.clone()}))
    shared = build(tiny.CONFIGS[name], written, dtype=dtype, device=tiny.CPU, metadata=note)
    assert shared.head._owner.data_ptr() == written["lm_head"].data_ptr()
    tokens = torch.tensor(tiny.prompt(1, 9))
    assert torch.equal(last_logits(shared, tokens), last_logits(tiny.model(name, dtype), tokens))


def laid_out(rows, columns, dtype):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)
    laid = lay_out(weight)
    data, _ = opaque.take_apart(laid)
    return weight, data.clone()


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (320, 192), (1000, 576)])
def test_rows_of_a_laid_out_head(rows, columns):
    weight, data = laid_out(rows, columns, torch.bfloat16)
    found = tied(data, weight)
    assert found is not None
    assert found.plain is None
    tokens = torch.tensor([0, rows - 1, 63, rows // 2, 0])
    assert torch.equal(found(tokens), weight[tokens])


def test_a_head_whose_rows_are_not_those_of_the_embedding():
    weight, data = laid_out(320, 192, torch.bfloat16)
    other = weight.clone()
    other[319, 191] += 1
    assert tied(data, other) is None
    assert tied(data[:-64], weight) is None, "no whole blocks"


@pytest.mark.parametrize("is_tied", [True, False])
def test_what_is_tied_is_written_once(is_tied):
    config = Qwen2Config(**tiny._SHAPE | {"vocab_size": 320, "hidden_size": 192, "tie_word_embeddings": is_tied})
    state = tiny.AutoModelForCausalLM.from_config(config).bfloat16().state_dict()
    weights = {key: value for key, value in state.items() if not (is_tied and key == "lm_head.weight")}
    written = {}
    note = record(config, weights, torch.bfloat16, lambda name, t: written.update({name: t.clone()}))
    assert ("model.embed_tokens.weight" in written) is not is_tied
    shared = build(config, written, dtype=torch.bfloat16, device=tiny.CPU, metadata=note)
    own = build(config, weights, dtype=torch.bfloat16, device=tiny.CPU)
    assert (
        shared.embedding.weight.data_ptr() == written["lm_head" if is_tied else "model.embed_tokens.weight"].data_ptr()
    )
    tokens = torch.tensor([5, 319, 0, 64, 200])
    assert torch.equal(shared.embedding(tokens), weights["model.embed_tokens.weight"][tokens])
    assert torch.equal(last_logits(shared, tokens), last_logits(own, tokens))


def test_weights_that_another_version_laid_out():
    written = {}
    note = record(tiny.CONFIGS["llama"], tiny.weights("llama"), torch.float32, lambda n, t: written.update({n: t}))
    with pytest.raises(UnsupportedModel, match="laid out in float32"):
        build(tiny.CONFIGS["llama"], written, dtype=torch.bfloat16, device=tiny.CPU, metadata=note)
    old = {key: text.replace("of torch", "of another torch") for key, text in note.items()}
    with pytest.raises(UnsupportedModel, match="another torch"):
        build(tiny.CONFIGS["llama"], written, dtype=torch.float32, device=tiny.CPU, metadata=old)


def test_models_that_run_as_they_are_are_not_laid_out():
    with pytest.raises(UnsupportedModel, match="as they are"):
        record(tiny.CONFIGS["gpt2"], tiny.weights("gpt2"), torch.float32, lambda name, tensor: None)


def test_generic_models_share_the_weights_they_are_given():
    owned = {t.data_ptr() for t in tiny.weights("gpt2").values()}
    assert all(p.data_ptr() in owned for p in tiny.model("gpt2").net.parameters())


def last_logits(model, tokens):
    from dataflower.llm.attention import Span, plan
    from dataflower.llm.kv import KvStore

    with torch.inference_mode():
        store = KvStore(model.kv, 1, 4, model.dtype, tiny.CPU)
        store.start(1, [])
        store.reserve(1, len(tokens))
        at = torch.arange(len(tokens))
        attention = plan(store, [Span(0, 0, 0, len(tokens))], at)
        return model.forward(tokens, at, attention, None, torch.tensor([len(tokens) - 1]))[0]


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_log_probabilities_in_bf16(name):
    """Greedy text may flip at near-ties in bf16; the probabilities agree as well as bf16 does with fp32."""
    prompt = tiny.prompt(3, 40)
    nets = tiny.reference(name), tiny.reference(name, torch.bfloat16)
    with torch.inference_mode():
        exact, theirs = (net(torch.tensor([prompt])).logits[0].float().log_softmax(-1) for net in nets)
    runner = tiny.runner(name, dtype=torch.bfloat16)
    (output,) = runner.stream(prompt, SamplingParams(max_tokens=0, score_from=1))
    check(runner)
    scored = torch.tensor([score.logprob for score in output.scores])
    wanted = exact[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    rounding = (theirs[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0] - wanted).abs()
    assert (scored - wanted).abs().mean() <= 2 * rounding.mean() + 0.01


PLACES = {
    "llama": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "gemma3": ("q_proj", "down_proj"),
    "gpt2": ("c_attn", "mlp.c_fc"),
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("name", PLACES)
def test_several_adapters_in_one_batch(name, tmp_path: Path):
    fan = {"fan_in_fan_out": True} if name == "gpt2" else {}
    modules = tiny.targets(name, *PLACES[name])
    paths = [tiny.adapter(tmp_path / f"a{i}", modules, seed=i, rank=2 + i, **fan) for i in range(3)]
    prompts = [tiny.prompt(i, 6 + 5 * i) for i in range(7)]
    which = [0, None, 1, 2, 1, None, 0]
    want = []
    for p, index in zip(prompts, which, strict=True):
        net = tiny.reference(name)
        if index is None:
            want.append(tiny.greedy(net, p, TOKENS))
            continue
        tuned = PeftModel.from_pretrained(net, paths[index]).eval()
        want.append(tiny.greedy(tuned, p, TOKENS))
        tuned.unload()
    assert want[0] != tiny.greedy(tiny.reference(name), prompts[0], TOKENS)  # they do change something
    runner = tiny.runner(name, blocks=200)
    loaded = [runner.adapters.load(f"a{i}", path) for i, path in enumerate(paths)]
    got = generate(runner, prompts, [None if i is None else loaded[i] for i in which])
    assert got == want
    assert generate(runner, prompts[:1], ["a0"]) == want[:1]  # alone, by name, from the cache
    check(runner)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("name", PLACES)
def test_log_probabilities_in_bf16_with_adapters(name, tmp_path: Path):
    """In a batch of several adapters and alone they are as far from fp32 as PEFT's in bf16, about."""
    fan = {"fan_in_fan_out": True} if name == "gpt2" else {}
    modules = tiny.targets(name, *PLACES[name])
    paths = [tiny.adapter(tmp_path / f"a{i}", modules, seed=i, rank=2 + i, **fan) for i in range(2)]
    prompts = [tiny.prompt(i, 20 + 5 * i) for i in range(4)]
    which = [0, None, 1, 0]

    def likely(net, prompt):
        with torch.inference_mode():
            rows = net(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
        return rows[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]

    wanted, rounding = [], []
    for prompt, index in zip(prompts, which, strict=True):
        found = []
        for dtype in (torch.float32, torch.bfloat16):
            net = tiny.reference(name, dtype)
            tuned = net if index is None else PeftModel.from_pretrained(net, paths[index]).eval()
            found.append(likely(tuned, prompt))
            if index is not None:
                tuned.unload()
        wanted.append(found[0])
        rounding.append((found[1] - found[0]).abs())
    runner = tiny.runner(name, blocks=200, dtype=torch.bfloat16)
    loaded = [runner.adapters.load(f"a{i}", path) for i, path in enumerate(paths)]
    adapters = [None if index is None else loaded[index] for index in which]
    params = SamplingParams(max_tokens=0, score_from=1)
    streams = [runner.stream(p, params, adapter=a) for p, a in zip(prompts, adapters, strict=True)]
    together = [[score.logprob for output in stream for score in output.scores] for stream in streams]
    alone = [
        [score.logprob for output in runner.stream(p, params, adapter=a) for score in output.scores]
        for p, a in zip(prompts, adapters, strict=True)
    ]
    check(runner)
    for scored in (together, alone):
        off = torch.cat([(torch.tensor(s) - w).abs() for s, w in zip(scored, wanted, strict=True)])
        assert off.mean() <= 2 * torch.cat(rounding).mean() + 0.01
    unlike = likely(tiny.reference(name), prompts[0])
    assert (wanted[0] - unlike).abs().mean() > 10 * torch.cat(rounding).mean()  # the adapter is no rounding


def test_hot_reload_never_mixes(tmp_path: Path):
    """The old and the new adapter of one name decode side by side, each to its own end."""
    modules = tiny.targets("llama", "q_proj", "v_proj")
    old, new = (tiny.adapter(tmp_path / f"v{i}", modules, seed=i) for i in range(2))
    prompts = [tiny.prompt(i, 10) for i in range(3)]
    quiet = tiny.runner(blocks=200)
    first, second = quiet.adapters.load("a", old), quiet.adapters.load("a", new)
    assert (first.generation, second.generation) == (1, 2)
    assert first.digest != second.digest
    want_old = generate(quiet, prompts, [first] * 3, ignore_eos=True)
    want_new = generate(quiet, prompts, [second] * 3, ignore_eos=True)
    assert want_old != want_new
    check(quiet)

    runner = tiny.runner(blocks=200)
    runner.adapters.load("a", old)
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    streams = [runner.stream(p, params, adapter="a") for p in prompts]
    got_old = [[next(stream).token] for stream in streams]  # they decode
    runner.adapters.load("a", new)
    later = [runner.stream(p, params, adapter="a") for p in prompts]
    runner.unload("a")
    for tokens, stream in zip(got_old, streams, strict=True):
        tokens += [o.token for o in stream]
    assert got_old == want_old
    assert [[o.token for o in stream] for stream in later] == want_new
    check(runner)


async def test_a_streamed_prompt_gives_the_same():
    prompt = tiny.prompt(5, 30)
    runner = tiny.runner()

    async def pieces():
        for start in range(0, 30, 7):
            yield prompt[start : start + 7]
            await asyncio.sleep(0)

    got = [o.token async for o in runner.generate(pieces(), SamplingParams(max_tokens=TOKENS)) if o.token is not None]
    assert got == tiny.greedy(tiny.reference("llama"), prompt, TOKENS)
    check(runner)
