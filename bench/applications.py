"""The five applications that SLO planners are compared on, as graphs of modules with choices of models.

Graphs after the module repositories of the field; `fanout` is a range, from which a seed picks how many requests a
module gets for one of its parent's. Models are candidates within one source of profiles, since durations of
different sources can't be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from dataflower.planner import Application, Module

DETECTORS = "detector"
CLASSIFIERS = "classifier"
SEGMENTERS = "segmenter"
GENERATORS = "generator"
TEXTS = "text"


@dataclass(frozen=True, slots=True)
class Role:
    """A module: what kind of model it runs, after which modules, and its fan-out, or that of which module it shares."""

    kind: str
    after: tuple[str, ...] = ()
    fanout: tuple[float, float] = (1.0, 1.0)
    like: str = ""


APPLICATIONS: dict[str, dict[str, Role]] = {
    "traffic": {
        "detect": Role(DETECTORS),
        "vehicle": Role(CLASSIFIERS, ("detect",), (1.5, 5.0)),
        "plate": Role(CLASSIFIERS, ("detect",), (1.0, 4.0)),
        "person": Role(CLASSIFIERS, ("detect",), (0.3, 1.5)),
    },
    "face": {
        "detect": Role(DETECTORS),
        "crop": Role(CLASSIFIERS, ("detect",), (1.0, 3.0)),
        "align": Role(GENERATORS, ("crop",)),
    },
    "pose": {
        "estimate": Role(SEGMENTERS),
        "recognise": Role(CLASSIFIERS, ("estimate",), (1.0, 3.0)),
        "track": Role(CLASSIFIERS, ("estimate",), like="recognise"),
        "judge": Role(CLASSIFIERS, ("recognise", "track")),
    },
    "caption": {
        "features": Role(CLASSIFIERS),
        "sequence": Role(CLASSIFIERS, ("features",), (0.25, 1.0)),
        "describe": Role(TEXTS, ("sequence",)),
    },
    "actdet": {
        "detect": Role(DETECTORS),
        "flow": Role(GENERATORS),
        "track": Role(CLASSIFIERS, ("detect",), (1.0, 4.0)),
        "tubes": Role(SEGMENTERS, ("track", "flow"), (0.25, 1.0)),
        "act": Role(CLASSIFIERS, ("tubes",)),
    },
}

Models = dict[str, tuple[str, ...]]
"""Kind -> candidate models of one source."""

PPIPE: Models = {
    DETECTORS: (
        "atss_r101_fpn_1x_coco",
        "centernet-update_r50-caffe_fpn_ms-1x_coco",
        "gfl_r50_fpn_ms-2x_coco",
        "tf_efficientdet_d1",
    ),
    CLASSIFIERS: (
        "googlenet-v3-pytorch",
        "resnext152-32x4d_8xb32_in1k",
        "repvgg-b3",
        "convnext_large",
        "wide_resnet101_2",
    ),
    SEGMENTERS: (
        "fcn-d6_r101-d16_4xb2-40k_cityscapes-512x1024",
        "isanet_r101-d8_4xb2-40k_cityscapes-512x1024",
        "emanet_r101-d8_4xb2-80k_cityscapes-769x769",
    ),
    GENERATORS: ("cyclegan", "colorization-v2", "repvgg-b3"),
    TEXTS: ("efficientnet-b8_3rdparty_8xb32-aa-advprop_in1k", "textsnake_resnet50_fpn-unet_1200e_ctw1500"),
}
PROTEUS: Models = {
    DETECTORS: ("yolov5n", "yolov5s", "yolov5m", "yolov5l"),
    CLASSIFIERS: ("resnet18_v1", "resnet50_v1", "resnet101_v1", "mobilenet1.0", "efficientnet-b0", "densenet121"),
    SEGMENTERS: ("resnet152_v1", "densenet161", "efficientnet-b3"),
    GENERATORS: ("densenet169", "resnet34_v1", "efficientnet-b1"),
    TEXTS: ("gpt2", "t5-small", "bert-base-uncased"),
}
SYNTHETIC: Models = {
    kind: tuple(f"{kind}{i}" for i in range(3)) for kind in (DETECTORS, CLASSIFIERS, SEGMENTERS, GENERATORS, TEXTS)
}

PRICES = {
    "V100": 2.48,
    "P4": 0.60,
    "T4": 0.35,
    "L4": 0.56,
    "onnxruntime_cpu": 0.20,
    "onnxruntime_gpu_pascal": 0.90,
    "fast": 3.06,
    "cheap": 0.53,
}
"""$ an hour: assumed, of the order of public list prices for one device alone; the profile tables have none."""


def application(name: str, models: Models, seed: int) -> Application:
    """One of the five with models and fan-outs picked by the seed."""
    random = Random(f"{name}/{seed}")
    factor: dict[str, float] = {}
    modules, edges = [], []
    for module, role in APPLICATIONS[name].items():
        above = max((factor[parent] for parent in role.after), default=1.0)
        drawn = round(above * random.uniform(*role.fanout), 3)
        factor[module] = factor[role.like] if role.like else drawn
        modules.append(Module(module, random.choice(models[role.kind]), factor[module]))
        edges += [(parent, module) for parent in role.after]
    return Application(name, tuple(modules), tuple(edges))


def large(stages: int, models: Models, seed: int) -> Application:
    """A long application: diamonds one after the other."""
    random = Random(seed)
    kinds = sorted(models)
    modules = [
        Module(f"s{i}", random.choice(models[kinds[i % len(kinds)]]), round(random.uniform(0.5, 2.0), 3))
        for i in range(stages)
    ]
    edges = []
    for i in range(0, stages, 4):
        ends = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)]
        edges += [(f"s{i + a}", f"s{i + b}") for a, b in ends if i + b < stages]
    return Application(f"large{stages}", tuple(modules), tuple(edges))
