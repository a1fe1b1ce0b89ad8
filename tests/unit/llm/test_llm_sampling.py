"""What is chosen from logits, and what is said of it."""

import pytest
import torch

from dataflower.llm.params import SamplingParams
from dataflower.llm.sampling import Chooser, choose


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_those_of_the_bare_logits(dtype):
    """A bias changes what is chosen, not how likely the model found it; nor does it stay in the logits."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], dtype=dtype)
    before = logits.clone()
    params = SamplingParams(max_tokens=1, logit_bias={2: 50.0}, logprobs=1)
    biased, plain = choose(logits, [Chooser(params), Chooser(SamplingParams(max_tokens=1, logprobs=1))])
    assert (biased.token, plain.token) == (2, 1)
    assert torch.equal(logits, before)
    expected = before.float().log_softmax(-1)
    assert biased.logprob is not None
    assert plain.logprob is not None
    assert biased.logprob.logprob == pytest.approx(float(expected[0, 2]))
    assert biased.logprob.top[0][0] == 0
    assert plain.logprob.logprob == pytest.approx(float(expected[1, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_not_finite_choose_nothing(dtype):
    logits = torch.tensor([[0.0, float("nan"), 1.0], [0.0, 2.0, 1.0], [float("inf"), 0.0, 0.0]], dtype=dtype)
    choices = choose(logits, [Chooser(SamplingParams(max_tokens=1)) for _ in range(3)])
    assert [choice.token for choice in choices] == [None, 1, None]
