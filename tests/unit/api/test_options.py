from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
import torch
from pydantic import Field

from kdcore import Data, Loss, Teacher, component, options_of
from kdcore.api.options import is_option_type


@pytest.mark.parametrize(
    "annotation",
    [
        bool,
        int,
        float,
        str,
        list,
        dict,
        Literal["a", "b"],
        list[float],
        dict[str, int],
        float | None,
        Optional[str],  # noqa: UP045
        str | list[str],
        Annotated[float, Field(ge=0)],
        list[Annotated[float, Field(ge=0)]],
        Teacher,
        Loss | None,
        list[Data],
        dict[str, list[Teacher]],
    ],
)
def test_recipes_can_spell(annotation):
    assert is_option_type(annotation)


@pytest.mark.parametrize(
    "annotation",
    [
        Any,
        object,
        Path,
        tuple[int, int],
        set[int],
        dict[int, str],
        bytes,
        torch.Tensor,
        float | Path,
        list[Path],
    ],
)
def test_recipes_cannot_spell(annotation):
    assert not is_option_type(annotation)


def test_bounds_are_reported_wherever_they_stand():
    @component
    class Bounded(Loss):
        name = "bounded"
        share: Annotated[float, Field(gt=0, le=1)] = 0.5
        k: Annotated[int, Field(ge=1)] | None = None
        free: float = 1.0

    assert [each.bounds for each in options_of(Bounded)] == ["> 0, <= 1", ">= 1", ""]
