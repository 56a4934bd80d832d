import tiny
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn

from kdcore import generate


def written(model, tokenizer, prompts, **options):
    return generate(model, tokenizer, prompts, max_new_tokens=8, **options)


def test_a_batch_writes_what_each_prompt_would_alone():
    tokenizer = tiny.byte_tokenizer()
    model = tiny.model(vocabulary=len(tokenizer))
    prompts = ["Once", "Once upon a time there was", "S"]
    together = written(model, tokenizer, prompts, temperature=0.0)
    alone = [written(model, tokenizer, [prompt], temperature=0.0)[0] for prompt in prompts]
    assert together == alone and all(together)
    assert not together[0].startswith("Once")


def test_a_prompt_may_be_ids():
    tokenizer = tiny.byte_tokenizer()
    model = tiny.model(vocabulary=len(tokenizer))
    prompts = ["Once", "Once upon a time there was"]
    ids = [tokenizer.encode(prompts[0]), prompts[1]]
    assert written(model, tokenizer, ids, temperature=0.0) == written(
        model, tokenizer, prompts, temperature=0.0
    )


def test_padding_is_masked_by_position_where_the_prompt_holds_eos():
    tokenizer = tiny.byte_tokenizer()
    model = tiny.model(vocabulary=len(tokenizer))
    prompts = ["<|end|><|end|>She", "Once upon a time there was"]
    together = written(model, tokenizer, prompts, temperature=0.0)
    assert together == [written(model, tokenizer, [p], temperature=0.0)[0] for p in prompts]


def test_the_same_seed_writes_the_same():
    tokenizer = tiny.byte_tokenizer()
    model = tiny.model(vocabulary=len(tokenizer))
    options = {"temperature": 1.0, "top_k": 40, "top_p": 0.95}
    first = written(model, tokenizer, ["Once"], seed=1, **options)
    torch.manual_seed(99)
    assert written(model, tokenizer, ["Once"], seed=1, **options) == first
    assert written(model, tokenizer, ["Once"], seed=2, **options) != first


def test_training_is_not_disturbed():
    tokenizer = tiny.byte_tokenizer()
    model = tiny.model("gpt2", vocabulary=len(tokenizer)).train()
    model.transformer.h[0].eval()
    modes, state = [each.training for each in model.modules()], torch.get_rng_state()
    written(model, tokenizer, ["Once"])
    assert modes == [each.training for each in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_dropout_is_off():
    tokenizer = tiny.byte_tokenizer()
    model = tiny.model("gpt2", vocabulary=len(tokenizer))
    plain = written(model.eval(), tokenizer, ["Once"], temperature=0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    assert written(model.train(), tokenizer, ["Once"], temperature=0.0) == plain


def test_an_empty_prompt_starts_a_text():
    tokenizer = tiny.byte_tokenizer()
    assert written(tiny.model(vocabulary=len(tokenizer)), tokenizer, [""])[0]


def test_the_model_stops_at_the_end():
    tokenizer = tiny.byte_tokenizer()
    model = tiny.model("phi", vocabulary=len(tokenizer), num_key_value_heads=4)
    nn.init.zeros_(model.lm_head.weight)
    nn.init.zeros_(model.lm_head.bias)
    model.lm_head.bias.data[tokenizer.eos_token_id] = 50.0
    assert written(model, tokenizer, ["Once", "She had a"]) == ["", ""]


def test_other_ids_may_end_it_too():
    tokenizer = tiny.byte_tokenizer()
    model = tiny.model("phi", vocabulary=len(tokenizer), num_key_value_heads=4)
    nn.init.zeros_(model.lm_head.weight)
    nn.init.zeros_(model.lm_head.bias)
    letter = tokenizer.encode("a")[0]
    model.lm_head.bias.data[letter] = 50.0
    assert written(model, tokenizer, ["Once", "She had a"]) == ["a" * 8] * 2
    assert written(model, tokenizer, ["Once", "She had a"], ends=[letter]) == ["a"] * 2


def test_prompts_begin_like_rows_unless_asked_otherwise():
    tokenizer = tiny.byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
    )
    model = tiny.model(vocabulary=len(tokenizer))
    greedy = {"temperature": 0.0}
    plain = written(model, tokenizer, ["Once"], **greedy)
    begun = written(model, tokenizer, ["Once"], special_tokens=True, **greedy)
    assert begun == written(model, tokenizer, ["<|end|>Once"], **greedy) != plain
    assert begun == written(model, tokenizer, ["Once"], bos=[tokenizer.eos_token_id], **greedy)
    assert begun == written(model, tokenizer, ["<|end|>Once"], special_tokens=True, **greedy)
