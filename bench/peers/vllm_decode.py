"""vllm on the CPU, for `bench.decode`: run by the interpreter of its own environment, asked line by line.

Arguments: the model's folder, then those of the adapters. A line in is {"what", "prompts", "tokens"}; a line out
begins with "= " and is tokens a second (the first one only says that it is ready).
"""

import json
import sys
import time

from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
from vllm.inputs import TokensPrompt  # type: ignore[import-not-found]
from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]


def main() -> None:
    """Serve until stdin ends."""
    folder, *adapters = sys.argv[1:]
    common = {"dtype": "bfloat16", "max_model_len": 1024, "max_num_seqs": 8, "enable_prefix_caching": False}
    plain = LLM(folder, **common)
    tuned = LLM(folder, enable_lora=True, max_loras=len(adapters), max_lora_rank=8, **common) if adapters else None
    requests = [LoRARequest(f"a{i}", i + 1, path) for i, path in enumerate(adapters)]
    print("= ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        lora = asked["what"].startswith("lora")
        llm = tuned if lora else plain
        prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in asked["prompts"]]
        assert llm is not None

        def run(tokens: int, llm=llm, prompts=prompts, lora=lora) -> float:  # type: ignore[no-untyped-def]
            params = SamplingParams(temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
            began = time.perf_counter()
            llm.generate(prompts, params, lora_request=requests if lora else None, use_tqdm=False)
            return time.perf_counter() - began

        if asked["what"] == "lora_prefill":
            rate = sum(len(prompt) for prompt in asked["prompts"]) / run(1)
        else:
            rate = len(prompts) * asked["tokens"] / (run(asked["tokens"] + 1) - run(1))
        print("=", rate, flush=True)


if __name__ == "__main__":
    main()
