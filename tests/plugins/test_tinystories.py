"""TinyStories from the hub or from files."""

import pytest
from kdcore_tinystories import TinyStories
from pydantic import ValidationError

from kdcore import RunError


def test_files_have_a_line_after_each_story(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("One.\n\nTwo.\n<|endoftext|>\n\nThree.\n<|endoftext|>\n")
    assert list(TinyStories(path=str(path)).texts("train")) == ["One.\n\nTwo.", "Three."]


@pytest.mark.parametrize(
    ("version", "name"), [(1, "roneneldan/TinyStories"), (2, "noanabeshima/TinyStoriesV2")]
)
def test_each_version_has_its_place_on_the_hub(version, name):
    with pytest.raises(RunError, match=f"cannot load the data set '{name}'"):
        list(TinyStories(version=version).texts("train"))


def test_there_are_two_versions():
    with pytest.raises(ValidationError, match="Input should be 1 or 2"):
        TinyStories(version=3)
    with pytest.raises(ValidationError, match="exclude each other"):
        TinyStories(validation="x", validation_share=0.5)


def test_the_fingerprint_is_of_what_is_read(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("One.")
    before = TinyStories(path=str(path)).fingerprint()
    path.write_text("Two.")
    assert TinyStories(path=str(path)).fingerprint() != before


@pytest.mark.slow
def test_real_stories(shared_data):
    train, validation = (str(shared_data / f"tinystories_{s}.txt") for s in ("train", "valid"))
    data = TinyStories(path=train, validation=validation, fraction=0.1)
    stories = list(data.texts("train"))
    assert len(stories) == 232
    assert all(len(story) > 50 for story in stories)
    assert len(list(data.texts("validation"))) == 946
