"""A student that has learned to end its turns goes into the world with that end."""

import chats
import tiny
from chats import QWEN, ask, rows_of

from kdcore.models.generation import add_stop_tokens, learned_stop_tokens

TOKENIZER = chats.chat_tokenizer()
END, EOS = TOKENIZER.convert_tokens_to_ids("<|im_end|>"), TOKENIZER.eos_token_id


def test_the_end_of_a_turn_is_found_in_what_is_learned(tmp_path):
    rows = rows_of(tmp_path, [ask("Who?", "I."), ask("Why?", "So.")], TOKENIZER, template=QWEN)
    assert learned_stop_tokens(rows, TOKENIZER) == {END}


def test_what_is_cut_off_ends_nothing():
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [1], "labels": [-100]}]
    assert not {2, 3} & {*TOKENIZER.all_special_ids, *TOKENIZER.added_tokens_decoder}
    assert learned_stop_tokens(rows, TOKENIZER) == set()


def test_a_marker_inside_what_is_learned_is_no_end():
    rows = [{"input_ids": [END, 2, END], "labels": [END, 2, -100]}]
    assert learned_stop_tokens(rows, TOKENIZER) == set()


def test_text_without_labels_has_none():
    assert learned_stop_tokens([{"input_ids": [2, END]}], TOKENIZER) == set()


def test_ends_join_the_models_own():
    model = tiny.model()
    model.generation_config.eos_token_id = None
    add_stop_tokens(model, set())
    assert model.generation_config.eos_token_id is None
    add_stop_tokens(model, {7})
    add_stop_tokens(model, {5})
    assert model.generation_config.eos_token_id == [5, 7]
    model.generation_config.eos_token_id = 3
    add_stop_tokens(model, {5})
    assert model.generation_config.eos_token_id == [3, 5]
