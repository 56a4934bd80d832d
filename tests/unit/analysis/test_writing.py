"""What writing takes of memory is at most what is planned, key-value cache included."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from kdcore_rollouts.student import StudentWrites

from kdcore import LanguageModel, Prompt, Sampling, sample
from kdcore.analysis.memory_trace import _Meter, fake_models
from kdcore.analysis.models import fresh_model
from kdcore.analysis.writing import Writing, writing_bytes
from kdcore.api.train_options import RolloutOptions

GROUP, VOCABULARY = 32, 300
SHAPES = {
    "wide": ("llama", {"hidden_size": 64, "num_hidden_layers": 2}),
    "deep": ("llama", {"hidden_size": 64, "num_hidden_layers": 8}),
    "grouped": ("qwen2", {"hidden_size": 128, "num_hidden_layers": 4}),
    "gpt2": ("gpt2", {"n_embd": 64}),
}


def stage(new, block=64):
    return SimpleNamespace(
        rollout=StudentWrites(max_new_tokens=new),
        writing=RolloutOptions(write_batch=GROUP),
        data=SimpleNamespace(block=block),
        train=SimpleNamespace(drawn=GROUP),
    )


def planned(models, new):
    with fake_models():
        fakes = [[(fresh_model(model.config, torch.float32, None), None) for model in models]]
        return writing_bytes(stage(new), fakes, VOCABULARY)


def taken(model, new, block=64):
    """Bytes of all tensors that are made and live while a group of answers is written."""
    language = LanguageModel(model)
    sample(language, [Prompt((1, 2, 3), 0)], Sampling(2))  # what is proved only once
    lengths = [block - new - n % 2 for n in range(GROUP)]  # so that some are padded
    prompts = [Prompt(tuple(range(1, length + 1)), n) for n, length in enumerate(lengths)]
    meter = _Meter()
    with meter:
        sample(language, prompts, Sampling(new, vocabulary=VOCABULARY))
    return meter.peak


@pytest.mark.slow
@pytest.mark.parametrize("new", [48, 8], ids=["long answers", "long prompts"])
@pytest.mark.parametrize(("kind", "options"), SHAPES.values(), ids=SHAPES)
def test_it_is_at_most_what_is_planned(kind, options, new):
    model = tiny.model(kind, VOCABULARY, 0, **options).eval()
    found, plan = taken(model, new), planned([model], new)
    assert 0 < plan.cache < found < 1.02 * plan.peak < 3 * found


@pytest.mark.slow
def test_the_largest_writer_counts_and_models_that_write_together_are_summed():
    small, large = (tiny.model("llama", VOCABULARY, 0, num_hidden_layers=n) for n in (1, 6))
    one, other, both = (planned(each, 16) for each in ([small], [large], [small, large]))
    assert both.cache == one.cache + other.cache and both.peak > other.peak > one.peak
    with fake_models():
        made = [fresh_model(model.config, torch.float32, None) for model in (small, large)]
        fakes = [[(model, None)] for model in made]
        assert writing_bytes(stage(16), fakes, VOCABULARY) == other
    nothing = SimpleNamespace(rollout=None)
    assert writing_bytes(nothing, [], VOCABULARY) == Writing()
