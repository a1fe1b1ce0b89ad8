"""Decode steps in compiled code give what torch's operators give, with adapters and without."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from transformers import LlamaConfig, Qwen2Config

from dataflower.errors import DataflowerError
from dataflower.llm.adapters import AdapterStore
from dataflower.llm.attention import Span, plan
from dataflower.llm.fused import Newest
from dataflower.llm.kernels import library
from dataflower.llm.kv import KvStore
from dataflower.llm.linear import can_pack
from dataflower.llm.lora import LoraStacks
from dataflower.llm.model import build, record
from dataflower.llm.params import SamplingParams
from dataflower.llm.runner import Runner

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 192,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
CONFIGS = {"llama": LlamaConfig(**SHAPE), "qwen2": Qwen2Config(**SHAPE)}
"""With a vocabulary that is no multiple of a block, and, the second, with biases."""
BROAD = SHAPE | {"hidden_size": 384, "num_hidden_layers": 3}
CONFIGS |= {"llama64": LlamaConfig(**BROAD | {"head_dim": 64}), "qwen128": Qwen2Config(**BROAD | {"head_dim": 128})}
"""With heads of sizes whose prompts are computed by the kernels, too."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The library, compiled for this test alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "PLACE", tmp_path_factory.mktemp("kernels"))
        library.load.cache_clear()
        library.build()
        yield library.load()
    library.load.cache_clear()


@pytest.fixture(params=[1, 3])
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def weights(name):
    """Random ones, to the precision of bf16; smaller where more of them are summed."""
    scale = 0.1 if CONFIGS[name].hidden_size < 256 else 0.05
    return {
        key: (torch.randn(value.shape, generator=torch.Generator().manual_seed(i)) * scale
              + (1 if "norm" in key else 0)).bfloat16()
        for i, (key, value) in enumerate(tiny.AutoModelForCausalLM.from_config(CONFIGS[name]).state_dict().items())
    }  # fmt: skip


def models(name):
    """Compiled, of torch's operators, and in fp32."""
    made = [build(CONFIGS[name], weights(name), dtype=d, device=CPU) for d in (torch.bfloat16,) * 2 + (torch.float32,)]
    assert can_pack(torch.zeros(64, 64, dtype=torch.bfloat16))
    assert made[0].fused is not None
    assert made[2].fused is None
    made[1].fused = None
    return made


def step(model, lengths, adapters):
    """Logits of one decode step after `lengths` tokens of each sequence, and the keys and values as they are then."""
    store = KvStore(model.kv, 4, 4, model.dtype, CPU)
    for number, length in enumerate(lengths):
        store.start(number, [])
        store.reserve(number, length + 1)
    chance = torch.Generator().manual_seed(1)
    filled = torch.randn(store.dense.shape, generator=chance).bfloat16()
    store.dense.copy_(filled)
    order = torch.randperm(len(lengths), generator=chance).tolist()
    positions = torch.tensor([lengths[row] for row in order])
    spans = [Span(row, index, lengths[row], 1) for index, row in enumerate(order)]
    lora = LoraStacks(model.groups, CPU).batch([(adapters[row % len(adapters)], 1) for row in order])
    tokens = torch.randint(0, 300, (len(order),), generator=chance)
    with torch.inference_mode():
        logits = model.forward(tokens, positions, plan(store, spans, positions), lora, torch.arange(len(order)))
    return logits.float().clone(), store.dense.float()


@pytest.mark.usefixtures("_threads", "compiled")
@pytest.mark.parametrize("lengths", [[9], [0, 15, 16, 17, 300, 64, 31, 5], list(range(40, 59))])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_is_what_it_is_in_fp32(name, lengths, tmp_path: Path):
    made = models(name)
    folders = [
        tiny.adapter(tmp_path / end, shapes(made[0], end), seed=seed, rank=seed + 3)
        for seed, end in enumerate(("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"))
    ]
    for with_adapters in (False, True):
        results = []
        for model in made:
            store = AdapterStore(model.modules, model.dtype, CPU)
            loaded = [store.load(folder, folder) for folder in folders] if with_adapters else []
            results.append(step(model, lengths, [None, *loaded]))
        (ours, ours_kv), (theirs, theirs_kv), (exact, exact_kv) = results
        assert (ours - exact).abs().mean() <= (theirs - exact).abs().mean()
        assert (ours - exact).abs().max() <= 1.5 * (theirs - exact).abs().max()
        assert (ours_kv - exact_kv).abs().max() <= 2 * (theirs_kv - exact_kv).abs().max()


@pytest.mark.usefixtures("compiled")
def test_the_kernel_reads_tied_embeddings_out_of_the_head():
    config = LlamaConfig(**SHAPE | {"tie_word_embeddings": True})
    plain = {key: value for key, value in weights("llama").items() if key != "lm_head.weight"}
    written = {}
    note = record(config, plain, torch.bfloat16, lambda key, tensor: written.update({key: tensor.clone()}))
    assert "model.embed_tokens.weight" not in written
    shared = build(config, written, dtype=torch.bfloat16, device=CPU, metadata=note)
    own = build(config, plain, dtype=torch.bfloat16, device=CPU)
    assert shared.fused is not None
    assert shared.embedding.plain is None
    for lengths in ([9], [0, 15, 16, 17, 300, 64, 31, 5]):
        results = [step(model, lengths, [None]) for model in (shared, own)]
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


MIXES = {
    "one prompt": ([(0, 70)], []),
    "the last piece of a long one": ([(130, 65)], []),
    "beside others that decode": ([(17, 1), (0, 1), (90, 1), (0, 9), (64, 64), (3, 200)], []),
    "with scores": ([(0, 1), (0, 75), (10, 20)], [5, 40, 74, 76]),
    "more rows of logits than decode at a time": ([(0, 60)], range(40)),
}
"""(tokens before, tokens now) of each sequence; rows whose logits are wanted besides the last of each."""


def mixed(model, spans, extra, adapters):
    """Logits of a step with prompts in it, and the keys and values as they are then."""
    store = KvStore(model.kv, 4, 4, model.dtype, CPU)
    for number, (start, count) in enumerate(spans):
        store.start(number, [])
        store.reserve(number, start + count)
    chance = torch.Generator().manual_seed(2)
    store.dense.copy_(torch.randn(store.dense.shape, generator=chance).bfloat16())
    order = [*(i for i, span in enumerate(spans) if span[1] == 1), *(i for i, span in enumerate(spans) if span[1] > 1)]
    made, places = [], []
    for row in order:
        start, count = spans[row]
        made.append(Span(row, len(places), start, count))
        places += range(start, start + count)
    positions, last = torch.tensor(places), [span.first + span.count - 1 for span in made]
    wanted = torch.tensor(sorted({*last, *extra}))
    lora = LoraStacks(model.groups, CPU).batch([(adapters[s.row % len(adapters)], s.count) for s in made])
    tokens = torch.randint(0, 300, (len(places),), generator=chance)
    with torch.inference_mode():
        logits = model.forward(tokens, positions, plan(store, made, positions), lora, wanted)
    return logits.float().clone(), store.dense.float()


@pytest.mark.usefixtures("_threads", "compiled")
@pytest.mark.parametrize("with_adapters", [False, True])
@pytest.mark.parametrize("name", ["llama64", "qwen128"])
def test_steps_with_prompts_are_what_they_are_in_fp32(name, with_adapters, tmp_path: Path):
    """Nearer to it than torch's in all, and not far off in any: with adapters random models blow up what is rounded."""
    made = models(name)
    folders = [
        tiny.adapter(tmp_path / end, shapes(made[0], end), seed=seed, rank=seed + 3)
        for seed, end in enumerate(("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"))
    ]
    apart = []
    for mix, (spans, extra) in MIXES.items():
        results = []
        for model in made:
            store = AdapterStore(model.modules, model.dtype, CPU)
            loaded = [store.load(folder, folder) for folder in folders] if with_adapters else []
            results.append(mixed(model, spans, extra, [*loaded, None]))
        (ours, ours_kv), (theirs, theirs_kv), (exact, exact_kv) = results
        assert ours.shape == exact.shape
        apart.append([float((found - exact).abs().mean()) for found in (ours, theirs)])
        assert apart[-1][0] <= 3 * apart[-1][1], mix
        assert (ours_kv - exact_kv).abs().max() <= 3 * (theirs_kv - exact_kv).abs().max(), mix
    assert sum(ours for ours, _ in apart) <= sum(theirs for _, theirs in apart) * 1.1


@pytest.mark.usefixtures("compiled")
def test_damaged_weights_are_seen_in_a_prompt():
    model = models("llama64")[0]
    model.layers[0].norm.fill_(float("nan"))
    assert mixed(model, [(0, 70), (4, 1)], [], [None])[0].isnan().all()


def shapes(model, end):
    return {n: (s.inputs, s.outputs) for n, s in model.modules.items() if n.endswith(end)}


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", ["llama", "llama64"])
def test_a_runner_decodes_with_it(name, tmp_path: Path):
    """Sequences come, go and are preempted; log-probabilities are those of torch's operators."""
    found = []
    for model in models(name)[:2]:
        runner = Runner(model, ends=[2], block_size=4, kv_bytes=40 * 4 * model.kv.token_bytes(model.dtype)).start()
        adapter = runner.adapters.load("a", tiny.adapter(tmp_path / "a", shapes(model, "q_proj"), seed=1))
        streams = [
            runner.stream(
                tiny.prompt(i, 5 + 3 * i), SamplingParams(max_tokens=6 + i, logprobs=0, ignore_eos=True), adapter=a
            )
            for i, a in enumerate((None, adapter, None, adapter, None, None))
        ]
        found.append([[o.logprob for o in stream if o.token is not None] for stream in streams])
        runner.close()
    apart = []
    for ours, theirs in zip(*found, strict=True):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            if a.token != b.token:
                break  # a near-tie: from here on they say different things
            apart.append(abs(a.logprob - b.logprob))
    assert len(apart) > 20
    assert sum(apart) / len(apart) < 0.05


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", CONFIGS)
def test_weights_that_the_host_laid_out(name):
    """Those that all functions of a host share: used where they lie."""
    written = {}
    note = record(CONFIGS[name], weights(name), torch.bfloat16, lambda n, t: written.update({n: t.clone()}))
    shared = build(CONFIGS[name], written, dtype=torch.bfloat16, device=CPU, metadata=note)
    assert shared.fused is not None
    found, kv = step(shared, [7, 0, 33], [None])
    expected, expected_kv = step(models(name)[0], [7, 0, 33], [None])
    assert torch.equal(found, expected)
    assert torch.equal(kv, expected_kv)


@pytest.mark.usefixtures("compiled")
def test_damaged_weights_are_seen():
    given = weights("llama")
    given["model.layers.1.mlp.down_proj.weight"] = given["model.layers.1.mlp.down_proj.weight"].clone()
    model = build(CONFIGS["llama"], given, dtype=torch.bfloat16, device=CPU)
    model.layers[0].norm.fill_(float("nan"))
    logits, _ = step(model, [4, 5], [None])
    assert logits.isnan().all()


def test_a_child_of_fork_has_threads_of_its_own(compiled):
    """A fork server may have used the kernels before it forks: the child must not wait for threads that it lacks."""
    code = f"""
import os, sys, torch
sys.path[:0] = {sys.path!r}
from pathlib import Path
from dataflower.llm.kernels import library
library.PLACE = Path({str(Path(compiled._name).parent)!r})
import test_llm_kernels as t
torch.set_num_threads(1)  # its own threads do not live through a fork
torch.get_num_threads = lambda: 2
model = t.models("llama")[0]
before = t.step(model, [3, 4, 5], [None])[0]
child = os.fork()
if not child:
    os._exit(0 if torch.equal(t.step(model, [3, 4, 5], [None])[0], before) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_them_torch_computes(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(library, "PLACE", tmp_path)
    library.load.cache_clear()
    assert build(CONFIGS["llama"], weights("llama"), dtype=torch.bfloat16, device=CPU).fused is None
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(DataflowerError, match="compiler"):
        library.build()
    library.load.cache_clear()


def test_those_of_another_processor_are_not_loaded(compiled, monkeypatch):
    there = library.path()
    monkeypatch.setattr(library, "_processor", lambda: "another")
    assert library.path() != there
    assert library.path().parent == there.parent


@pytest.mark.usefixtures("compiled")
def test_they_can_be_turned_off(monkeypatch):
    monkeypatch.setenv(library.SWITCH, "0")
    library.load.cache_clear()
    assert library.load() is None
    monkeypatch.delenv(library.SWITCH)
    library.load.cache_clear()
    assert library.load() is not None


@pytest.mark.usefixtures("_threads", "compiled")
@pytest.mark.parametrize("count", [1, 5])
def test_the_likeliest_tokens_are_those_of_the_logits(count):
    """The first of several; in the last block, which the vocabulary does not fill; and NaN where one is."""
    model = models("llama")[0]
    store = KvStore(model.kv, 4, 4, model.dtype, CPU)
    for number in range(count):
        store.start(number, [])
        store.reserve(number, 1)
    for seed in range(20):
        tokens = torch.randint(0, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
        decoded = model.decode(Newest(tokens, [0] * count, list(range(count)), store, None))
        assert decoded.likely == decoded.logits.numpy().argmax(-1).tolist()
        assert decoded.best == decoded.logits.amax(-1).tolist()
    assert model.decode(Newest([1] * 33, [0] * 33, list(range(33)), store, None)) is None
    model.norm.fill_(0.0)
    decoded = model.decode(Newest([1] * count, [0] * count, list(range(count)), store, None))
    assert (decoded.best, decoded.likely) == ([0.0] * count, [0] * count)
    model.norm.fill_(float("nan"))
    decoded = model.decode(Newest([1] * count, [0] * count, list(range(count)), store, None))
    assert all(value != value for value in decoded.best)
