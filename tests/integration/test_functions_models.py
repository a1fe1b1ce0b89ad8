"""The shipped functions on their real weights and data, called one after the other without the engine."""

import asyncio
import json
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM

from dataflower.llm.request import parse
from functions import assets, faces, llm, scene, text, video, vision

pytestmark = [pytest.mark.models, pytest.mark.slow]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def new(kind, **params):
    instance = kind()
    instance.setup(**params)
    return instance


@pytest.fixture
def made():
    """`new`, for instances that are closed after the test."""
    instances = []

    def make(kind, **params):
        instances.append(new(kind, **params))
        return instances[-1]

    yield make
    while instances:  # pytest still holds `make`, and thereby what they have mapped
        instances.pop().close()


def run(generator):
    """Items of a generator function, and what it returned."""
    items = []
    while True:
        try:
            items.append(next(generator))
        except StopIteration as end:
            return items, end.value


@pytest.fixture(scope="module")
def detect():
    return new(vision.Detect)


@pytest.fixture(scope="module")
def find_faces():
    return new(faces.FindFaces)


def look(name, detect, find_faces, fps=2.0):
    """Frames and records of a packaged video."""
    for item in video.decode(name, fps=fps):
        frame = item["frame"]
        frame.flags.writeable = False  # as in the engine
        crops, found = run(detect(frame))
        by_crop = [find_faces(**crop) for crop in crops]
        yield frame, scene.join(item["at"], found["objects"], by_crop)


def test_street_has_people_cars_and_bicycles_and_a_story(made, detect, find_faces, tmp_path):
    looked = list(look("bikes", detect, find_faces))
    records = [record for _, record in looked]
    summary = scene.summarise(records, "bikes", "Tell what the video shows.")
    seen = summary["report"]["seen"]
    assert summary["report"]["frames"] == 20
    assert {"person", "car", "bicycle"} <= seen.keys()
    assert seen["person"]["frames"] >= 3
    assert seen["car"]["frames"] >= 4
    assert any(not record["objects"] for record in records)  # frames without anything are normal

    pictures = (video.annotate(frame, record) for frame, record in looked)
    written = video.write(pictures, str(tmp_path))
    assert len(list(video.decode(written["clip"], fps=2))) == 20

    stages = YAML(typ="safe").load(Path("workflows/video.yaml"))["stages"]
    pieces, done = run(made(llm.Chat, **stages["tell"]["params"])(summary["prompt"]))
    told = "".join(piece["text"] for piece in pieces)
    assert done == {"reply": told}
    assert len(pieces) > 10
    assert "person" in told or "car" in told


def test_face_lies_where_the_man_in_the_car_has_his(detect, find_faces):
    records = [record for _, record in look("carphone", detect, find_faces)]
    found = [face["box"] for record in records for face in record["faces"]]
    assert len(found) >= 3
    for x0, y0, x1, y1 in found:
        assert 20 < (x0 + x1) / 2 < 110
        assert 20 < (y0 + y1) / 2 < 90
        assert 20 < x1 - x0 < 70


def test_face_finder_alone_finds_one_face_in_nearly_every_frame(find_faces):
    frames = [item["frame"] for item in video.decode("carphone", fps=3)]
    counts = [len(find_faces.find(frame)[0]) for frame in frames]
    assert max(counts) == 1
    assert sum(counts) >= len(counts) - 2


def test_no_face_in_a_grey_or_tiny_picture(find_faces):
    for shape in ((120, 90, 3), (5, 9, 3)):
        boxes, scores = find_faces.find(torch.full(shape, 128, dtype=torch.uint8).numpy())
        assert len(boxes) == len(scores) == 0


QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}


async def deltas(complete, **fields):
    """Items of a completion, and their text."""
    items = [delta async for delta in complete(QUESTION | {"temperature": 0} | fields)]
    return items, "".join(item.get("text", "") for item in items)


@pytest.fixture(scope="module")
def complete():
    instance = new(llm.Complete, dtype="float32")
    yield instance
    instance.close()


async def test_greedy_equals_transformers(complete):
    net = AutoModelForCausalLM.from_pretrained(assets.find(assets.SMOLLM2), dtype=torch.float32).eval()
    ids = complete.stage.prompt(parse(QUESTION))
    want = net.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=2)[0, len(ids) :].tolist()
    items, text = await deltas(complete, max_tokens=24)
    assert [token for item in items for token in item.get("tokens", [])] == [token for token in want if token != 2]
    assert "Paris" in text
    assert items[-1]["finish_reason"] == "stop"
    assert items[-1]["usage"]["prompt_tokens"] == len(ids)


async def test_many_ask_one_model_at_a_time(complete):
    alone, _ = await deltas(complete, max_tokens=12)
    together = await asyncio.gather(*(deltas(complete, max_tokens=12) for _ in range(6)))
    for items, _ in together:
        assert [item.get("tokens") for item in items] == [item.get("tokens") for item in alone]


async def test_an_answer_that_follows_a_schema(complete):
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 30}, "people": {"type": "integer"}},
        "required": ["capital", "people"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    items, text = await deltas(complete, response_format=wanted, max_tokens=80)
    assert set(json.loads(text)) == {"capital", "people"}
    assert items[-1]["finish_reason"] == "stop"


async def test_a_tool_that_must_be_called(complete):
    parameters = {"type": "object", "properties": {"country": {"enum": ["France", "Spain"]}}, "required": ["country"]}
    tool = {"type": "function", "function": {"name": "capital_of", "parameters": parameters}}
    items, text = await deltas(complete, tools=[tool], tool_choice="required", max_tokens=60)
    assert text == ""
    assert items[-1]["finish_reason"] == "tool_calls"
    (call,) = items[-1]["tool_calls"]
    assert call["name"] == "capital_of"
    assert json.loads(call["arguments"])["country"] in {"France", "Spain"}


def test_tokenizer_splits_digits_and_keeps_the_chat_template(complete):
    tokenizer = complete.stage.tokenizer
    assert tokenizer.tokenize("2026") == ["2", "0", "2", "6"]
    messages = [{"role": "user", "content": "Hi"}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_chat_streams_whole_characters(made):
    pieces, done = run(made(llm.Chat, max_new_tokens=12)("Write three emoji of animals. Only emoji."))
    assert "".join(piece["text"] for piece in pieces) == done["reply"]
    assert "\ufffd" not in done["reply"]
    assert 0 < len(pieces) <= 12


def test_triage_sorts_messages(made):
    params = YAML(typ="safe").load(Path("workflows/triage.yaml"))["stages"]["sort"]["params"]
    sort = made(llm.Choose, **params)
    messages = {
        "My parcel arrived yesterday, but the lamp in it is broken and nobody answers the phone!": "angry",
        "How long does the delivery to Norway take?": "curious",
        "Perfect, exactly what I was looking for!": "happy",
    }
    for message, label in messages.items():
        answer = sort(message)
        assert answer["label"] == label
        assert sum(answer["scores"].values()) == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize("name", ["films", "products", "editorials"])
def test_packaged_texts(name):
    ranked = text.rank([text.count(chunk) for chunk in text.split(name)])
    assert next(iter(ranked["top"])) == "the"
    assert ranked["words"] > 50_000
    assert assets.find(assets.TEXTS, f"{name}.txt").read_text("utf-8")
