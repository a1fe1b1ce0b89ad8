# ruff: noqa: E501 - a table reads better in one line a row
"""The workflow file: what it means, and what is said about a bad one, at which place."""

from __future__ import annotations

import pytest

from dataflower.errors import WorkflowInvalid
from dataflower.spec.builder import Builder, each, gather
from dataflower.spec.dump import dump
from dataflower.spec.format import format_text
from dataflower.spec.load import load
from dataflower.spec.schema import workflow_schema
from dataflower.spec.scopes import scopes_of
from dataflower.spec.tree import parse
from dataflower.spec.workflow import Edge, Fanout, Isolation, PortRef, Workflow

SOURCE = """
import torch
from dataflower import function, Stream, Tensor, Json, Text
@function(outputs={"frame": Stream(Tensor("UINT8", ["H", "W", 3]))})
def decode(path: str, fps: int = 1):
    yield 1
@function(outputs={"objects": Stream(Json()), "n": Json()}, inputs={"frame": Tensor("UINT8", ["H", "W", 3])})
class Detect:
    def setup(self, threshold: float = 0.3): ...
    def __call__(self, frame): yield {}
def name(crop) -> str: ...
def score(text: str) -> float: ...
class Chat:
    def setup(self, model: str): ...
    def __call__(self, text: str, context) -> str: ...
class Alone:
    def setup(self, model: str, adapter: str = ""): ...
    def __call__(self, text: str) -> str: ...
def plain(text: str, model: str, adapter: str) -> str: ...
"""
HEAD = "apiVersion: dataflower/v1\nkind: Workflow\nmetadata: {name: w}\n"


def read(text: str, files: dict[str, str] | None = None, profile: str | None = None) -> Workflow:
    def find(module: str) -> tuple[str, str] | None:
        return ("f/video.py", SOURCE) if module == "f.video" else None

    return load(text, file="w.yaml", read=(files or {}).get, find_source=find, profile=profile)


def problems(body: str, files: dict[str, str] | None = None, profile: str | None = None) -> list[str]:
    with pytest.raises(WorkflowInvalid) as caught:
        read(HEAD + body, files, profile)
    return [str(problem) for problem in caught.value.problems]


GOOD = (
    HEAD
    + """\
slo: {e2e_ms: 2s}
inputs: {video: string, image: {dtype: float32, shape: [2, 3]}}
stages:
  decode: {function: f.video:decode, inputs: {path: inputs.video}, params: {fps: 2}, timeout_s: 200ms}
  detect:
    function: f.video:Detect
    inputs: {frame: {each: decode.frame}}
    max_containers: 2 # Modal's word
    resources: {memory: 2GiB}
  name: {function: f.video:name, inputs: {crop: {each: detect.objects}}}
  names: {function: f.video:name, inputs: {crop: {gather: name}}}
  sub: {workflow: sub/s.yaml, inputs: {text: names.out}}
outputs: {frames: decode.frame, scores: {gather: sub.score}}
profiles: {laptop: {stages: {detect: {scaling: {num_replicas: 1}}}}}
"""
)
SUB = (
    HEAD
    + """\
inputs: {text: string, more: {type: string, default: x}}
stages:
  score: {function: f.video:score, inputs: {text: inputs.text}}
  other: {function: f.video:score, inputs: {text: inputs.more}}
outputs: {score: score}
"""
)
FILES = {"sub/s.yaml": SUB}


def test_a_good_file() -> None:
    workflow = read(GOOD, FILES)
    assert workflow.slo is not None
    assert workflow.slo.e2e_ms == 2000
    assert workflow.stages["decode"].timeout_s == 0.2
    assert workflow.stages["detect"].scaling.max_replicas == 2
    assert workflow.stages["detect"].resources.memory_bytes == 2 << 30
    assert workflow.stages["detect"].preload == ("torch",)
    assert workflow.stages["names"].inputs[0].edges == (Edge(PortRef("name", "out"), Fanout.GATHER),)
    assert [port.name for port in workflow.inputs] == ["video", "image", "sub/more"]
    scopes = scopes_of(workflow)
    assert scopes["name"] == ("decode", "detect")
    assert scopes["sub/score"] == ("decode",)
    assert workflow.outputs[0].type_ is not None
    assert workflow.outputs[0].type_.stream


def test_a_profile_replaces_numbers_under_any_name() -> None:
    scaling = read(GOOD, FILES, "laptop").stages["detect"].scaling
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 1)
    assert problems(GOOD.removeprefix(HEAD), FILES, "lapto") == [
        "w.yaml:17:1: no profile 'lapto' (did you mean 'laptop'?)"
    ]


def test_dump_is_lossless_with_and_without_sources() -> None:
    workflow = read(GOOD, FILES)
    assert read(dump(workflow)) == workflow
    assert load(dump(workflow), file="x", read=lambda _: None, find_source=lambda _: None) == workflow


DECODE = "inputs: {v: string, x: {dtype: FP32, shape: [2, 3]}}\nstages:\n  decode: {function: f.video:decode, inputs: {path: inputs.v}}\n"


@pytest.mark.parametrize(
    ("body", "place", "said"),
    [
        ("stages: {}\n", "4:9", "stages: "),
        ("stages:\n  a: {functon: f.video:score}\n", "5:7", "unknown key 'functon' (did you mean 'function'?)"),
        ("stages:\n  a: {function: f.video:scor}\n", "5:17", "no function or class 'scor' (did you mean 'score'?)"),
        ("stages:\n  a: {function: g:x}\n", "5:17", "no module 'g'"),
        ("stages:\n  a: {function: f.video:score}\n", "5:3", "lacks input 'text' (string)"),
        (DECODE + "  a: {function: f.video:name, inputs: {crop: decod.frame}}\n", "7:46", "did you mean 'decode'?"),
        (DECODE + "  a: {function: f.video:name, inputs: {crop: {each: decode.fram}}}\n", "7:53", "did you mean 'frame'?"),
        (DECODE + "  a: {function: f.video:name, inputs: {cropp: inputs.v}}\n", "7:40", "did you mean 'crop'?"),
        (DECODE + "  a: {function: f.video:name, inputs: {crop: decode.frame}}\n", "7:46", "use {each: decode.frame}"),
        (DECODE + "  a: {function: f.video:name, inputs: {crop: {each: inputs.v}}}\n", "7:53", "is one value"),
        (DECODE + "  a: {function: f.video:Detect, inputs: {frame: inputs.x}}\n", "7:49", "inputs.x is FP32[2, 3], but a.frame is UINT8[H, W, 3]: dtype"),
        (DECODE + "  a: {function: f.video:score, inputs: {text: inputs.v}, timeout_s: 5x}\n", "7:69", "is not a duration"),
        (DECODE + f"  a: {{function: f.video:score, inputs: {{text: inputs.v}}, timeout_s: {'9' * 400}}}\n", "7:69", "the number is too large"),
        (DECODE + f"  a: {{function: f.video:score, inputs: {{text: inputs.v}}, timeout_s: {'9' * 400}h}}\n", "7:69", "the number is too large"),
        (DECODE + "  a: {function: f.video:score, inputs: {text: inputs.v}, when: r.x}\n", "7:64", "no stage 'r'"),
        (DECODE + "  a: {function: f.video:score, inputs: {text: inputs.v}, catch: [{goto: decod}]}\n", "7:73", "did you mean 'decode'?"),
        (DECODE + "  a: {function: f.video:score, inputs: {text: inputs.v}, min_replicas: 3, max_replicas: 2}\n", "7:72", "more than max_replicas 2"),
        (DECODE + "  r: {inputs: {s: inputs.v}, switch: {a: 's >'}}\n", "7:42", "conditions are CEL"),
        (DECODE + "  r: {inputs: {score: inputs.v}, switch: {a: scor > 1}}\n", "7:46", "no input 'scor' (did you mean 'score'?)"),
        (DECODE + "  r: {inputs: {s: inputs.v}, switch: {a: default, b: default}}\n", "7:54", "a second default"),
        (DECODE + "  r: {inputs: {s: inputs.v}, switch: {yes: s == 'x'}}\n  a: {function: f.video:score, inputs: {text: inputs.v}, when: r.yess}\n", "8:64", "did you mean 'yes'?"),
        (DECODE + "  r: {inputs: {s: inputs.v}, switch: {a: default}, retry: {max_attempts: 2}}\n", "7:52", "'retry' does not go with `switch`"),
        (DECODE + "  r: {inputs: {s: inputs.v}, switch: {a: default}, catch: [{output: {}}]}\n", "7:52", "guard it"),
        (DECODE + "  r: {inputs: {s: inputs.v}, switch: {a: default}, timeout_s: 2}\n", "7:52", "'timeout_s' does not go with `switch`"),
        (DECODE + "  r: {inputs: {s: inputs.v}, switch: {a: default}, scaling: {min_replicas: 1}}\n", "7:52", "without a task"),
        (DECODE + "  r: {inputs: {s: inputs.v}, switch: {a: default}, max_replicas: 1}\n", "7:52", "'max_replicas' does not go with `switch`"),
        (DECODE + "  r: {inputs: {s: inputs.v}, switch: {a: default}, resources: {cpu: 2}}\n", "7:52", "'resources' does not go with `switch`"),
        (DECODE + "  decode: {}\n", "7:3", "key 'decode' is given twice"),
        (DECODE + "slo: {e2e_ms: 0}\n", "7:15", "greater than 0"),
        (DECODE + "outputs: {o: {each: decode.frame}}\n", "7:14", "inside the fan-out decode"),
        ("stages: [\n", "5:1", "not valid YAML"),
        ("stages:\n a: {}\n  b: {}\n", "6:3", "indent the keys of one map alike"),
        ("stages:\n\ta: {}\n", "5:1", "with spaces"),
    ],
)  # fmt: skip
def test_one_problem_at_its_place(body: str, place: str, said: str) -> None:
    found = problems(body)
    assert len(found) == 1, found
    assert found[0].startswith(f"w.yaml:{place}: "), found
    assert said in found[0]


def test_maps_merge_what_is_merged_into_them() -> None:
    tree = parse("a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, z: 3}\n", "w.yaml")
    assert (tree.data["c"], tree.problems) == ({"x": 1, "y": 2, "z": 3}, [])


def test_what_is_no_map_is_not_merged_in_silence() -> None:
    found = parse("a: {<<: 5, x: 1}\nb: {<<: [{y: 2}, [z]]}\n", "w.yaml")
    assert found.data == {"a": {"x": 1}, "b": {"y": 2}}
    places = [(problem.line, problem.column, problem.message) for problem in found.problems]
    assert places == [(1, 9, "only maps can be merged into a map"), (2, 18, "only maps can be merged into a map")]


def test_a_map_that_is_merged_into_itself_ends() -> None:
    assert parse("a: &a {<<: *a, x: 1}\n", "w.yaml").data == {"a": {"x": 1}}


def test_booleans_of_yaml_1_1_are_what_they_say() -> None:
    tree = parse("%YAML 1.1\n---\na: yes\nb: no\nc: On\nd: true\n", "w.yaml")
    assert (tree.data, tree.problems) == ({"a": True, "b": False, "c": True, "d": True}, [])
    assert parse("a: yes\n", "w.yaml").data == {"a": "yes"}
    assert [problem.message for problem in parse("a: !!bool maybe\n", "w.yaml").problems] == [
        "not a valid bool: 'maybe'"
    ]


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    found = problems(
        "slo: {e2e: 1}\nstages:\n  a: {function: f.video:scor}\n  b: {function: f.video:score, inputs: {text: c}}\n"
    )
    assert [line.split(": ")[0] for line in found] == ["w.yaml:4:7", "w.yaml:6:17", "w.yaml:7:47"]


def test_cycles_are_named_by_their_path() -> None:
    body = "".join(
        f"  {one}: {{function: f.video:name, inputs: {{crop: {other}.out}}}}\n" for one, other in ("ab", "bc", "ca")
    )
    assert "a -> c -> b -> a" in problems("stages:\n" + body)[0]


def test_files_that_contain_each_other() -> None:
    body = "stages:\n  s: {workflow: w.yaml}\n"
    assert "w.yaml -> w.yaml" in problems(body, {"w.yaml": HEAD + body})[0]


def test_problems_of_a_nested_file_stand_in_that_file() -> None:
    found = problems(GOOD.removeprefix(HEAD), {"sub/s.yaml": SUB.replace("inputs.more", "inputs.mor")})
    assert found == ["sub/s.yaml:7:51: the workflow has no input 'mor' (did you mean 'more'?)"]


def split(text: str):
    yield text


def upper(line: str) -> str:
    return line.upper()


def test_built_in_python_is_the_same_as_written_in_yaml() -> None:
    w = Builder("w")
    lines = w.stage("split", split, text=w.input("text", "string"))
    w.output("lines", gather(w.stage("upper", upper, line=each(lines.out), timeout_s=2)["out"]))
    workflow = w.build()
    assert scopes_of(workflow) == {"split": (), "upper": ("split",)}
    assert load(dump(workflow), file="x", read=lambda _: None, find_source=lambda _: None) == workflow


def test_a_workflow_built_in_python_nests_in_another() -> None:
    inner = Builder("inner")
    shouted = inner.stage("upper", upper, line=inner.input("text", "string"))
    inner.output("loud", shouted["out"])
    w = Builder("outer")
    shout = w.nest("shout", inner.build(), text=w.input("message", "string"))
    w.output("said", shout["loud"])
    workflow = w.build()
    assert list(workflow.stages) == ["shout/upper"]
    assert [(output.name, output.edge.source.stage) for output in workflow.outputs] == [("said", "shout/upper")]


def test_builder_says_where_it_was_called() -> None:
    w = Builder("w")
    w.stage("upper", upper, lin=w.input("text"))
    with pytest.raises(WorkflowInvalid) as caught:
        w.build()
    assert caught.value.problems[0].file == __file__
    assert any("did you mean 'line'?" in problem.hint for problem in caught.value.problems)


def test_fmt_keeps_comments_and_meaning() -> None:
    tidied = format_text(GOOD)
    assert "max_replicas: 2 # Modal's word" in " ".join(tidied.split())
    assert "dtype: FP32" in tidied
    assert read(tidied, FILES) == read(GOOD, FILES)


def test_schema_knows_every_key() -> None:
    schema = workflow_schema()
    assert {"apiVersion", "stages", "profiles"} <= schema["properties"].keys()
    assert {"function", "switch", "workflow"} <= schema["$defs"]["StageDocument"]["properties"].keys()
    assert schema["additionalProperties"] is False


SHARED = (
    HEAD
    + """\
inputs: {text: string}
stages:
  a:
    function: f.video:Chat
    inputs: {text: inputs.text}
    model: m
    adapter: x
    isolation: shared
outputs: {out: a}
"""
)


def test_a_stage_that_shares_its_container() -> None:
    shared = read(SHARED.replace("name: w", "name: w, owner: acme"))
    assert (shared.owner, shared.stages["a"].isolation, shared.stages["a"].adapter) == ("acme", Isolation.SHARED, "x")
    again = read(dump(shared))
    assert (again.owner, again.stages["a"].isolation) == ("acme", Isolation.SHARED)
    assert read(SHARED).owner == ""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    model: m\n", "", "w.yaml:10:16: `isolation: shared` is for stages that name their weights"),
        ("f.video:Chat", "f.video:Alone", "w.yaml:11:16: f.video:Alone can't tell apart the tasks of the stages"),
        ("f.video:Chat", "f.video:plain", "w.yaml:11:16: f.video:plain can't tell apart"),
        (
            "    adapter: x\n",
            "    batch: {max_size: 4}\n",
            "w.yaml:11:16: `isolation: shared` does not go with batches",
        ),
        ("isolation: shared", "isolation: shard", "w.yaml:11:16: "),
        ("name: w", "name: w, owner: a b", "w.yaml:3:28: 'a b' is not a name"),
        ("inputs: {text: string}", "isolation: shared\ninputs: {text: string}", "w.yaml:4:12: "),
    ],
)
def test_who_can_not_share_is_told_why(old: str, new: str, said: str) -> None:
    with pytest.raises(WorkflowInvalid) as caught:
        read(SHARED.replace(old, new))
    found = [str(problem) for problem in caught.value.problems]
    assert any(problem.startswith(said) for problem in found), found
