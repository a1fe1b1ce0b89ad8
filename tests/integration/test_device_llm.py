"""Language models on a device, through a whole host: sandboxed functions share one copy, and say what a CPU's would."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import tiny

from dataflower import checkpoint
from dataflower.config.sources import load_text
from dataflower.errors import InvocationFailed
from dataflower.host.runtime import Runtime
from dataflower.host.settings import HostConfig
from dataflower.testing.fake_device import NAME
from functions import assets

ROOT = str(Path(__file__).parents[2])
FILE = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {{name: {name}}}
inputs: {{request: json}}
stages:
  only:
    function: functions.llm:Complete
    inputs: {{request: inputs.request}}
    params: {{model: {model}, dtype: float32, packed: false, device: '{device}'}}
    isolation: {isolation}
outputs: {{out: only.deltas}}
"""
ASKED = {"request": {"messages": [{"role": "user", "content": "one two"}], "temperature": 0, "max_tokens": 12}}

CHOOSE = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {{name: choose}}
inputs: {{message: string}}
stages:
  only:
    function: functions.llm:Choose
    inputs: {{message: inputs.message}}
    model: {model}
    params: {{labels: [three, four], instruction: say, dtype: float32, device: '{device}'}}
outputs: {{scores: only.scores}}
"""

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(path)
    net = tiny.reference("llama")
    net.generation_config.eos_token_id = 2
    net.save_pretrained(path)
    return path


async def test_sandboxed_functions_share_a_backbone_on_a_device(folder: Path, tmp_path: Path) -> None:
    models = checkpoint.StoreConfig(models_dir=tmp_path / "store", accelerators="dataflower.testing.fake_device")
    config = HostConfig(code_path=(ROOT,), cpus=2, models=models, readable_paths=(str(folder),))
    said = {}
    async with Runtime(config) as host:
        for name, device in (("first", NAME), ("second", NAME), ("plain", "cpu")):
            text = FILE.format(name=name, model=folder, device=device, isolation="sandbox")
            await host.apply(load_text(text, f"{name}.yaml", code_path=[ROOT]), name)
            outputs = await (await host.invoke(name, ASKED)).result()
            said[name] = [token for item in outputs["out"] for token in item.get("tokens", [])]
        weights = await host.weights()
        assert weights is not None
        (shelf,) = weights.devices
        assert [(m.clients, m.ready) for m in shelf.models] == [(2, True)]
        assert shelf.total_bytes - shelf.free_bytes < 2 * shelf.models[0].nbytes
    assert said["first"] == said["second"] == said["plain"]
    assert len(said["first"]) > 1


async def test_a_device_that_is_not_there_is_said_so(folder: Path) -> None:
    async with Runtime(HostConfig(code_path=(ROOT,), cpus=2)) as host:
        text = FILE.format(name="lost", model=folder, device="cuda:63", isolation="process")
        await host.apply(load_text(text, "lost.yaml", code_path=[ROOT]), "lost")
        with pytest.raises(InvocationFailed, match=r"device 'cuda:63' in the stage's params: there is no"):
            await (await host.invoke("lost", ASKED)).result()


async def test_a_backbone_is_on_the_device_before_the_first_call(folder: Path, tmp_path: Path) -> None:
    models = checkpoint.StoreConfig(models_dir=tmp_path / "store", accelerators="dataflower.testing.fake_device")
    config = HostConfig(
        code_path=(ROOT,),
        cpus=2,
        models=models,
        readable_paths=(str(folder),),
        preload=True,
        preload_memory_bytes=2**30,
    )
    name = f"weights {folder} on {NAME}"
    text = CHOOSE.format(model=folder, device=NAME)
    async with Runtime(config) as host, asyncio.timeout(120):
        await host.apply(load_text(text, "choose.yaml", code_path=[ROOT]), text)
        while not any(row.name == name and row.held and row.ready for row in host.preloaded()):
            await asyncio.sleep(0.02)
        weights = await host.weights()
        assert weights is not None
        assert [model.held for model in weights.devices[0].models] == [True]
        outputs = await (await host.invoke("choose", {"message": "one two"})).result()
        assert set(outputs["scores"]) == {"three", "four"}


EMBED = """
apiVersion: dataflower/v1
kind: Workflow
metadata: {{name: {name}}}
inputs: {{texts: json}}
stages:
  only:
    function: functions.embed:Embed
    inputs: {{texts: inputs.texts}}
    params: {{device: '{device}'}}
outputs: {{vectors: only.vectors, tokens: only.tokens}}
"""


@pytest.mark.models
async def test_embedders_share_their_weights_on_a_device_and_on_the_host(tmp_path: Path) -> None:
    models = checkpoint.StoreConfig(models_dir=tmp_path / "store", accelerators="dataflower.testing.fake_device")
    config = HostConfig(code_path=(ROOT,), cpus=2, models=models, readable_paths=(str(assets.cache()),))
    made = {}
    async with Runtime(config) as host:
        for name, device in (("first", NAME), ("second", NAME), ("plain", "cpu")):
            text = EMBED.format(name=name, device=device)
            await host.apply(load_text(text, f"{name}.yaml", code_path=[ROOT]), name)
            outputs = await (await host.invoke(name, {"texts": ["one two", "three"]})).result()
            made[name] = np.array(outputs["vectors"])
        weights = await host.weights()
        assert weights is not None
        assert [(m.clients, m.ready) for m in weights.devices[0].models] == [(2, True)]
        assert [(m.clients, m.ready) for m in weights.models] == [(1, True)]
    assert made["plain"].shape == (2, 384)
    assert np.array_equal(made["first"], made["second"])
    np.testing.assert_allclose(made["first"], made["plain"], atol=1e-5)
