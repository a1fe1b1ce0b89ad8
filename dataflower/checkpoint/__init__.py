"""Model weights: found, fetched, checked, and mapped once per host whatever the number of functions.

    from dataflower import checkpoint

    with checkpoint.open("smollm2") as weights:     # a name, a folder, or a safetensors file
        weights.digest                              # what caches are keyed by
        weights.config_dir                          # config.json, tokenizer, chat template
        tensors = weights.tensors()                 # name -> torch.Tensor, read-only views

`checkpoint.tensors.bind(module, tensors)` makes them the parameters of a module that was built on the meta device;
`checkpoint.skeleton.build(weights)` makes a model of the transformers library of them.
"""

from dataflower.checkpoint.opening import open_weights as open
from dataflower.checkpoint.settings import StoreConfig
from dataflower.checkpoint.weights import Weights

__all__ = ["StoreConfig", "Weights", "open"]
