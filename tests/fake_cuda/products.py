"""Products of halves that come out in float32, which only CUDA has, with its rules on types."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
_kernels = torch.library.Library("aten", "IMPL")


def register() -> None:
    """For the key CUDA."""
    _kernels.impl("mm.dtype", _mm, "CUDA")
    _kernels.impl("addmm.dtype_out", _addmm, "CUDA")


def _mm(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    _check(a, b, out_dtype)
    return a.float() @ b.float()


def _addmm(
    self: Tensor,
    a: Tensor,
    b: Tensor,
    out_dtype: torch.dtype,
    *,
    beta: float = 1,
    alpha: float = 1,
    out: Tensor,
) -> Tensor:
    _check(a, b, out_dtype)
    if out.dtype != out_dtype or self.dtype not in (out_dtype, a.dtype):
        raise RuntimeError("addmm: self and out must have out_dtype, or self the operands' type")
    return out.copy_(beta * self + alpha * (a.float() @ b.float()))


def _check(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> None:
    if a.dtype != b.dtype or a.dtype not in HALF or out_dtype != torch.float32:
        raise RuntimeError(f"out_dtype: {a.dtype} times {b.dtype} cannot give {out_dtype}")
