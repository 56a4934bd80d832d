import logging

import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kdcore import RunError
from kdcore.models.vocabulary import bytes_per_id, cut_to, verify_same_ids

UNSEEN = "Ærøskøbing: 100 % “naïve” \U0001f98a\U0001f98a\t\n\n  東京, x_1 = 3.5;  and so on"


def words(*tokens, eos="<eos>"):
    """A tokenizer of whole words, with these ids."""
    made = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos, unk_token="<unk>")


def test_equal_tokenizers_share_everything(caplog):
    tokenizer = tiny.byte_tokenizer()
    with caplog.at_level(logging.WARNING, logger="kdcore"):
        assert verify_same_ids(tokenizer, {}) == len(tokenizer)
        assert verify_same_ids(tokenizer, {"teacher 'hf'": tiny.byte_tokenizer()}) == len(tokenizer)
    assert not caplog.records


def test_shared_ids_end_with_the_shorter():
    student = words("<unk>", "<eos>", "a", "b")
    longer = words("<unk>", "<eos>", "a", "b", "c", "d")
    assert verify_same_ids(student, {"one": longer}) == 4
    assert verify_same_ids(longer, {"one": student}) == 4


def test_conflicts_are_named():
    student = words("<unk>", "<eos>", "a", "b", "c", "d", "e", "f", "g")
    teacher = words("<unk>", "<eos>", "b", "a", "d", "c", "f", "e", "g")
    with pytest.raises(RunError) as caught:
        verify_same_ids(student, {"the same": student, "teacher 'hf'": teacher})
    message = str(caught.value)
    assert "6 of 9 ids mean something else to teacher 'hf' than to the student" in message
    named = [line for line in message.splitlines() if line.startswith("    ")]
    assert len(named) == 4
    assert len(message.splitlines()) == 6
    assert named[0].strip() == "2: 'a' to the student, 'b' to teacher 'hf'"


def test_a_hole_is_a_conflict():
    student = words("<unk>", "<eos>", "a", "b")
    holed = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "b": 3}, "<unk>"))
    other = PreTrainedTokenizerFast(tokenizer_object=holed, eos_token="<eos>", unk_token="<unk>")
    with pytest.raises(RunError, match="2: 'a' to the student, nothing to T"):
        verify_same_ids(student, {"T": other})


def test_the_students_end_of_text_must_be_shared():
    student = words("<unk>", "a", "b", "<eos>")
    with pytest.raises(RunError, match=r"ends texts with id 3 \('<eos>'\)"):
        verify_same_ids(student, {"T": words("<unk>", "a", eos="<unk>")})


def test_other_pieces_of_the_same_ids_are_reported(caplog):
    student, other = tiny.byte_tokenizer(), tiny.byte_tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(".", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    with caplog.at_level(logging.WARNING, logger="kdcore"):
        assert verify_same_ids(student, {"T": other}) == len(student)
    assert "splits text differently" in caplog.text


def test_cut_to_says_what_is_cut(caplog):
    with caplog.at_level(logging.INFO, logger="kdcore"):
        assert cut_to(151_665, {"student": 151_936, "teacher": 152_064}) == 151_665
    assert caplog.messages == [
        "vocabulary: student 151,936, teacher 152,064 rows; logits are cut to 151,665 shared ids"
    ]
    assert cut_to(100, {"student": 90}) == 90


@pytest.mark.parametrize("text", [*tiny.TEXTS, UNSEEN])
def test_bytes_of_byte_level_ids_add_up(text):
    tokenizer = tiny.byte_tokenizer()
    sizes = bytes_per_id(tokenizer)
    ids = tokenizer.encode(text)
    assert sizes.dtype == "int32" and len(sizes) == len(tokenizer)
    assert sizes[ids].sum() == len(text.encode())


@pytest.mark.parametrize("text", [*tiny.TEXTS, UNSEEN])
def test_bytes_of_pieces_add_up(text):
    tokenizer = tiny.llama_tokenizer()
    sizes = bytes_per_id(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids
    assert sizes[ids].sum() == len(text.encode()) + 1  # the first word's space


def test_special_ids_stand_for_nothing_and_added_words_for_themselves():
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens(["Größe"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    sizes = bytes_per_id(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["Größe", "<|im_start|>", tokenizer.eos_token])
    assert sizes[ids].tolist() == [len("Größe".encode()), 0, 0]


def test_added_runs_of_spaces_are_spaces():
    """As in Gemma's tokenizer, which adds them as tokens and spells them as pieces."""
    tokenizer = tiny.llama_tokenizer(["a  b    c", *tiny.TEXTS])
    tokenizer.add_tokens(["▁▁", "\n\n"])
    ids = tokenizer.convert_tokens_to_ids(["▁▁", "\n\n"])
    assert bytes_per_id(tokenizer)[ids].tolist() == [2, 2]


def test_bytes_of_word_pieces():
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    assert bytes_per_id(tokenizer).tolist() == [0, 5, 3]
