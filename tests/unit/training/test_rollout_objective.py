"""On fixed answers, loss and gradient are those of a reference over whole logits, in float64."""

import engine
import given
import numpy as np
import pytest
import torch
from engine import Held, term
from kdcore_losses import JensenShannon, ReverseKL
from kdcore_losses.on_policy import OnPolicyDistillation
from test_rollout_rows import BLOCK, DIALOGUES, Lines

from kdcore import Completion, Rollout, component
from kdcore.api.train_options import RolloutOptions
from kdcore.data.given import as_rows
from kdcore.data.sampler import TrainingRows
from kdcore.training.rollout_rows import RolloutRows

pytestmark = pytest.mark.slow


@component
class Fixed(Rollout):
    """Answers by the prompt's seed alone, as a file of completions would."""

    name = "fixed"

    def generate(self, run, prompts):
        drawn = [np.random.default_rng(prompt.seed) for prompt in prompts]
        return [
            Completion(tuple(one.integers(4, given.VOCABULARY, one.integers(1, 7)).tolist()), False)
            for one in drawn
        ]


def jsd(log_q, log_p, labels, beta=0.3):
    mixed = torch.logaddexp(log_p + np.log(beta), log_q + np.log(1 - beta))
    of_p = (log_p.exp() * (log_p - mixed)).sum(-1)
    of_q = (log_q.exp() * (log_q - mixed)).sum(-1)
    return beta * of_p + (1 - beta) * of_q


def reverse(log_q, log_p, labels):
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def sampled(log_q, log_p, labels):
    """Its value is log q - log p, its gradient (log q - log p) times that of log q."""
    q, p = (each.gather(1, labels[:, None]).squeeze(1) for each in (log_q, log_p))
    return (q - q.detach() + 1) * (q - p).detach()


FORMS = {
    "GKD": (JensenShannon(beta=0.3), jsd),
    "on-policy reverse KL": (ReverseKL(), reverse),
    "sampled token": (OnPolicyDistillation(), sampled),
}


def prepared(student, loss, micro_batch):
    made = engine.trainer(
        student,
        DIALOGUES,
        [term(loss)],
        teacher=Held(given.model(seed=1, double=True)),
        micro_batch=micro_batch,
        batch=8,
    )
    run = made.run
    run.tokenizer, run.recipe.rollout = Lines(), Fixed(max_new_tokens=6)
    run.recipe.writing = RolloutOptions(prompt_tokens=3)
    run.recipe.data.rows, run.recipe.data.block = "pack", BLOCK
    plain = TrainingRows(lambda _: as_rows(DIALOGUES, "train"), made.rows.order, 0, 1)
    made.rows = made.rollouts = RolloutRows(run, plain)
    return made


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
@pytest.mark.parametrize(("loss", "formula"), FORMS.values(), ids=FORMS)
def test_loss_and_gradient_are_those_of_whole_logits(loss, formula, micro_batch):
    student = given.model(double=True)
    made = prepared(student, loss, micro_batch)
    noted = {}

    def add(terms, shares, choices, good, squares):
        noted["loss"] = float(torch.stack(list(shares)).sum())

    made.recorder.add = add
    made.step(1)
    reference = given.model(double=True)
    teacher = given.model(seed=1, double=True)
    values = []
    for one in made.rollouts.written(1):
        ids = torch.tensor([[*one.prompt.ids, *one.ids]])
        begin = len(one.prompt.ids) - 1
        log_q, log_p = (
            model(ids, use_cache=False).logits[0, begin:-1].log_softmax(-1)
            for model in (reference, teacher)
        )
        values.append(formula(log_q, log_p.detach(), ids[0, begin + 1 :]))
    whole = torch.cat(values).mean()
    whole.backward()
    assert abs(noted["loss"] - float(whole.detach())) < 1e-10
    gradients = dict(
        zip([n for n, _ in student.named_parameters()], made.optimizer.seen, strict=True)
    )
    for name, parameter in reference.named_parameters():
        assert (gradients[name] - parameter.grad).abs().max() < 1e-10, name
