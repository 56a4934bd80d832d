"""What is said where a run is repeated in another place than it ran in."""

import json

import pytest

from kdcore.plugin.manager import PluginManager
from kdcore.runs.environment import describe_differences, differences, environment_of

HOST = PluginManager(off=["panel"])


def test_here_nothing_differs(tmp_path):
    assert describe_differences(tmp_path, HOST) is None
    (tmp_path / "env.json").write_text(json.dumps(environment_of(HOST)))
    assert describe_differences(tmp_path, HOST) is None


def test_what_differs_is_named(tmp_path):
    before = environment_of(HOST)
    before["packages"] = {**before["packages"], "torch": "1.0"}
    before["processor"] = {**before["processor"], "name": "an abacus"}
    before["devices"] = [{"name": "a slate"}]
    (tmp_path / "env.json").write_text(json.dumps(before))
    said = describe_differences(tmp_path, HOST)
    for part in ("packages torch was 1.0, is ", "processor name was an abacus", "devices 0 name"):
        assert part in said


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff", b"[" * 10**5])
def test_a_damaged_record_says_nothing_of_where_it_was_written(tmp_path, content):
    (tmp_path / "env.json").write_bytes(content)
    assert (
        "env.json is damaged, so the environment that wrote it is unknown"
        in describe_differences(tmp_path, HOST)
    )


def test_of_many_differences_the_first_are_reported(tmp_path):
    (tmp_path / "env.json").write_text(json.dumps({"plugins": {f"p{n}": "1" for n in range(99)}}))
    assert "p7 was 1, is not there; and " in describe_differences(tmp_path, HOST)


def test_lists_and_tables_are_compared_by_their_places():
    one, other = {"a": {"b": [1, 2]}, "c": 3}, {"a": {"b": [1, 4]}, "c": 3}
    assert differences(one, other) == ["a b 1 was 2, is 4"]
