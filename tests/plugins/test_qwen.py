from types import SimpleNamespace

import pytest
import tiny
from kdcore_hf import HfTeacher
from kdcore_qwen import QwenTeacher
from pydantic import ValidationError

from kdcore import RunError, read


@pytest.mark.parametrize(
    ("options", "source"),
    [
        ({"size": "1.5B"}, "Qwen/Qwen2.5-1.5B"),
        ({"size": "7B", "variant": "base"}, "Qwen/Qwen2.5-7B"),
        ({"size": "7B", "variant": "instruct"}, "Qwen/Qwen2.5-7B-Instruct"),
        ({"model": "Qwen/Qwen2.5-3B"}, "Qwen/Qwen2.5-3B"),
    ],
)
def test_source(options, source):
    assert QwenTeacher(**options).source() == source


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({}, "either model or size"),
        ({"model": "x", "size": "7B"}, "either model or size"),
        ({"model": "x", "variant": "base"}, "variant goes with size"),
        ({"size": "8B"}, "'0.5B', '1.5B', '3B'"),
    ],
)
def test_faults(options, fault):
    with pytest.raises(ValidationError, match=fault):
        QwenTeacher(**options)


def test_a_stages_weights(tmp_path):
    tiny.save(tmp_path, "qwen2", vocabulary=300)
    teacher = QwenTeacher(model=str(tmp_path))
    teacher.load(SimpleNamespace(device=tiny.CPU))
    batch = tiny.batch(tiny.documents((5,)), [[(0, 0, 5)]])
    assert read(teacher, batch)(batch.valid).shape == (4, 64)
    assert teacher.fingerprint() == HfTeacher(model=str(tmp_path)).fingerprint()


def test_out_of_reach():
    with pytest.raises(RunError, match=r"cannot load 'Qwen/Qwen2\.5-0\.5B': not a folder here"):
        QwenTeacher(size="0.5B").load(SimpleNamespace(device=tiny.CPU))
