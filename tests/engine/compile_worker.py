"""Run by test_head_kernels.py: compiles the kernels for a GPU that is not here, and prints what came of each as JSON.

A process of its own, since a Triton that interprets kernels, as in the other tests, compiles none.
"""

from __future__ import annotations

import json
import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from align.engine import triton_kernels

STATE = {"largest": "*fp32", "total": "*fp32", "chosen": "*fp32"}
BACKWARD = {"normaliser": "*fp32", "upstream": "*fp32", "out": "*bf16"}
NUMBERS = {"first": "i32", "words": "i32", "scale": "fp32", "cap": "fp32"}


def main(generation: int) -> None:
    options = dict(triton_kernels._LAUNCH)
    block = options.pop("BLOCK")
    found = []
    for kernel, own in ((triton_kernels._absorb, STATE), (triton_kernels._differentiate, BACKWARD)):
        for capped in (False, True):
            signature = {"logits": "*fp32", "targets": "*i64", **own, **NUMBERS}
            # as Triton finds them when it is called: addresses and widths are multiples of 16
            aligned = {
                (i,): [["tt.divisibility", 16]]
                for i, (name, kind) in enumerate(signature.items())
                if kind[0] == "*" or name in ("first", "words")
            }
            signature |= {"CAPPED": "constexpr", "BLOCK": "constexpr"}
            source = ASTSource(kernel, signature, {"CAPPED": capped, "BLOCK": block}, aligned)
            made = compile(source, target=GPUTarget("cuda", generation, 32), options=options).asm
            pieces = [made["ptx"].count(f"{word}.global.v4.b32") for word in ("ld", "st")]
            found.append(
                {"backward": own is BACKWARD, "cubin": len(made["cubin"]), "read": pieces[0], "written": pieces[1]}
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
