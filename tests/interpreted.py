"""Triton kernels on CPU tensors: what tests do with Liger's layers where there is no GPU.

Triton's interpreter lacks three things that Liger's kernels use, and they are added here: floats as arguments are
float32 scalars to a compiled kernel, bfloat16 has an arithmetic of its own, and two functions come from CUDA's library.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

_WHY = "needs triton and liger-kernel (extra gpu), whose kernels triton's interpreter runs on the CPU"
pytest.importorskip("triton", reason=_WHY)
pytest.importorskip("liger_kernel", reason=_WHY)
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("kernels are compiled here: TRITON_INTERPRET is set where there is no GPU", allow_module_level=True)

import numpy as np
import torch
import triton.language as tl
from liger_kernel.ops import geglu, rms_norm
from triton.runtime import interpreter

_convert = interpreter._implicit_cvt
_binary, _cast = interpreter.InterpreterBuilder.binary_op, interpreter.InterpreterBuilder.cast_impl


def _argument(value: Any) -> Any:
    if isinstance(value, float):
        return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)
    return _convert(value)


def _binary_op(builder: Any, lhs: Any, rhs: Any, op: Any) -> Any:
    """Two bfloat16 factors as hardware multiplies them: in float32, and rounded."""
    if lhs.dtype.scalar != tl.bfloat16:
        return _binary(builder, lhs, rhs, op)
    wide = [_cast(builder, x, tl.float32) for x in (lhs, rhs)]
    return _cast_impl(builder, _binary(builder, *wide, op), tl.bfloat16)


def _cast_impl(builder: Any, value: Any, kind: Any) -> Any:
    """float32 rounded to the nearest bfloat16, which the interpreter cuts off."""
    if kind.scalar != tl.bfloat16 or value.dtype.scalar != tl.float32:
        return _cast(builder, value, kind)
    rounded = torch.from_numpy(np.ascontiguousarray(value.data, dtype=np.float32)).bfloat16()
    return interpreter.TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)


interpreter._implicit_cvt = _argument
interpreter.InterpreterBuilder.binary_op = _binary_op
interpreter.InterpreterBuilder.cast_impl = _cast_impl
interpreter.InterpreterBuilder.create_fp_trunc = _cast_impl
rms_norm.rsqrt = lambda x: tl.rsqrt(x)  # looked up when a kernel runs: the interpreter exchanges it then
geglu.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1
