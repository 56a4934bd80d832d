"""Writing token by token: what is drawn, by what random numbers, with a cache and without."""

import given
import numpy as np
import pytest
import torch

from kdcore import LanguageModel, Prompt, Sampling
from kdcore.models import decoding
from kdcore.models.completions import Completion, completions_from, completions_state, uniforms
from kdcore.models.decoding import allowed, draw, is_exact_with_cache, sample

PROMPTS = [Prompt(tuple(range(1, 2 + n)), 7 + n) for n in range(5)]


def proved(kind="llama", **options):
    return LanguageModel(given.model(kind, **options))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_cache_changes_no_text(kind, temperature, monkeypatch):
    model = proved(kind)
    sampling = Sampling(12, temperature=temperature, ends=frozenset({0}), vocabulary=30)
    assert is_exact_with_cache(model)
    found = sample(model, PROMPTS, sampling)
    monkeypatch.setattr(decoding, "is_exact_with_cache", lambda model: False)
    again = sample(model, PROMPTS, sampling)
    assert [one.ids for one in found] == [one.ids for one in again]
    for one, other in zip(found, again, strict=True):
        assert np.allclose(one.log_probs, other.log_probs, atol=1e-5)


def test_a_sliding_window_is_kept_with_a_cache():
    assert is_exact_with_cache(proved("mistral", sliding_window=4))


def test_a_model_whose_cache_gives_other_numbers_writes_without(monkeypatch):
    model = proved()
    inner = LanguageModel.next_states

    def wrong(self, ids, places, mask, cache):
        return inner(self, ids, places, mask, cache) + (cache is not None)

    monkeypatch.setattr(LanguageModel, "next_states", wrong)
    assert not is_exact_with_cache(model)


def test_what_is_written_is_what_the_model_says():
    """Likeliest tokens, one whole forward each; log-probabilities at temperature 1."""
    model = proved()
    found = sample(model, PROMPTS, Sampling(6, temperature=0.0, vocabulary=30))
    for prompt, one in zip(PROMPTS, found, strict=True):
        ids = list(prompt.ids)
        for new, log in zip(one.ids, one.log_probs, strict=True):
            logits = model.model(torch.tensor([ids]), use_cache=False).logits[0, -1, :30]
            assert new == int(logits.argmax())
            assert abs(float(logits.detach().log_softmax(-1)[new]) - log) < 1e-5
            ids.append(new)


def test_no_id_is_outside_the_shared_vocabulary():
    found = sample(proved(), PROMPTS, Sampling(40, temperature=5.0, vocabulary=7))
    assert {each for one in found for each in one.ids} == set(range(7))


def test_the_group_does_not_decide_what_a_prompt_draws():
    model = proved(double=True)
    alone = [sample(model, [prompt], Sampling(8))[0].ids for prompt in PROMPTS]
    assert [one.ids for one in sample(model, PROMPTS, Sampling(8))] == alone


def test_an_answer_ends_where_an_end_is_drawn():
    found = sample(proved(), PROMPTS * 4, Sampling(12, temperature=2.0, ends=frozenset({4, 9})))
    assert {one.finished for one in found[:5]} <= {True, False}
    for one in found:
        assert one.finished == (one.ids[-1] in (4, 9))
        assert not {4, 9} & set(one.ids[:-1]) and (one.finished or len(one.ids) == 12)


def test_drawing_is_by_the_cumulated_probability():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    for number, wanted in ((0.0, 0), (0.0999, 0), (0.1001, 1), (0.599, 2), (0.601, 3), (1.0, 3)):
        assert int(draw(logits, np.array([number]), Sampling(1))[0]) == wanted


def test_drawing_has_the_models_distribution():
    logits = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).expand(20_000, 6)
    ids, _ = draw(logits, uniforms(3, 20_000), Sampling(1, temperature=0.7))
    shares = torch.bincount(ids, minlength=6) / 20_000
    assert (shares - (logits[0] / 0.7).softmax(-1)).abs().max() < 0.015


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1, top_p=0.5), [0.4, 0.3]),
        (Sampling(1, top_p=0.39), [0.4]),
        (Sampling(1, top_p=0.7), [0.4, 0.3]),
        (Sampling(1, top_p=0.71), [0.4, 0.3, 0.2]),
        (Sampling(1, top_k=2), [0.4, 0.3]),
        (Sampling(1, top_k=3, top_p=0.5), [0.4, 0.3]),
        (Sampling(1), [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_what_top_k_and_top_p_leave(sampling, kept):
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).log()
    left = allowed(scores, sampling).exp()
    assert sorted(left[left > 0].tolist()) == pytest.approx(sorted(kept))


def test_top_k_and_top_p_are_those_of_transformers():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(9, 31, generator=torch.Generator().manual_seed(2)).double()
    theirs = logits
    for warper in (TemperatureLogitsWarper(0.8), TopKLogitsWarper(12), TopPLogitsWarper(0.85)):
        theirs = warper(None, theirs)
    ours = allowed(logits / 0.8, Sampling(1, top_k=12, top_p=0.85))
    torch.testing.assert_close(ours, theirs)


def test_completions_come_back_from_their_state():
    some = [
        Completion((1, 2), True, (-0.5, -1.25), "student", Prompt((3,), 9, 4, {"a": "b"}, (7, 8))),
        Completion((), False, None, "teacher"),
    ]
    assert repr(completions_from(completions_state(some))) == repr(some)
    assert completions_from(completions_state([])) == []


def test_log_probabilities_are_at_temperature_1_over_all_shared_ids_whatever_drew_them():
    model = proved()
    sampling = Sampling(6, temperature=0.3, top_k=5, top_p=0.6, vocabulary=30)
    for prompt, one in zip(PROMPTS, sample(model, PROMPTS, sampling), strict=True):
        ids = torch.tensor([[*prompt.ids, *one.ids]])
        begin = len(prompt.ids) - 1
        logits = model.model(ids, use_cache=False).logits[0, begin:-1, :30].detach()
        exact = logits.log_softmax(-1).gather(1, ids[0, begin + 1 :, None])[:, 0]
        assert one.log_probs == pytest.approx(exact.tolist(), abs=1e-5)
