"""What losses take that prepare a step, where there is no step."""

import pytest
import tiny
import torch
from kdcore_losses import CrossEntropy, DistiLLM2, MiniLLM, OnPolicyDistillation

from kdcore import PluginError, PreparedLoss
from kdcore.analysis.blank import of_single_tokens
from kdcore.analysis.memory_trace import Pass, fake_models, footprint


class Bad(PreparedLoss):
    name = "bad"

    def prepare(self, tokens):
        return tokens.step


def test_losses_of_single_tokens_stay_as_they_are():
    loss = CrossEntropy()
    assert of_single_tokens([loss]) == [loss]


def test_one_that_prepares_is_given_zeros_and_keeps_its_state():
    loss = DistiLLM2()
    (made,) = of_single_tokens([loss])
    student, teacher = torch.randn(2, 5, 7)
    found = made.per_token(student, teacher, torch.arange(5))
    zeros = torch.zeros(5, 3)
    expected = loss.per_token_prepared(student, teacher, torch.arange(5), zeros)
    torch.testing.assert_close(found, expected)
    assert (made.name, made.needs_teacher, made.temperatures()) == ("distillm2", True, [1.0])
    assert loss.state_dict()["gaps"].isnan().all()


def test_a_loss_that_prepares_nothing_is_named():
    with pytest.raises(PluginError, match=r"loss 'bad' .*returned int from prepare"):
        of_single_tokens([Bad()])


@pytest.mark.slow
@pytest.mark.parametrize("loss", [OnPolicyDistillation(), MiniLLM(), DistiLLM2()], ids=str)
def test_its_tensors_are_counted(loss):
    losses = of_single_tokens([loss])
    about = {"rows": 2, "time": 16, "vocabulary": 300, "chunk": 32, "precision": None}
    with fake_models():
        student, teacher = (tiny.model("llama", 300) for _ in range(2))
        found = footprint(student, [teacher], [], Pass(losses=losses, **about))
        alone = footprint(student, [], [], Pass(losses=[CrossEntropy()], **about))
    assert found.chunk > alone.chunk
