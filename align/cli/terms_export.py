"""Words of ``align export``."""

from __future__ import annotations

from align.cli.terms import Explanation

EXPORTS: dict[str, Explanation] = {
    "merge": Explanation(
        "The adapter is put into the weights of its model (align export --merge), so that nobody needs peft.",
        "Logits of three texts and of tokens from the whole vocabulary are computed in float32 with the adapter beside "
        "the weights and inside of them. The largest difference must be below 1e-5 of the largest logit, which is what "
        "another order of sums makes. Up to 1e-2, float64 tells whether it is rounding; otherwise nothing is written, "
        "and the first layer that differs is named.",
        "Refused: export the adapter without --merge, and look at what it changes (adapter_config.json).",
    ),
    "rounding": Explanation(
        "What it changes that merged weights are written in 16 bits.",
        "Weights are merged in float32 and rounded once. The same logits are computed with the rounded weights, in "
        "float32: the largest difference, and at which share of the tokens the likeliest next token stays.",
        "If it is too much, --dtype float32 writes what was merged. An adapter that is not merged is not rounded.",
    ),
    "load": Explanation(
        "Whether the export loads without align: in a process that has transformers and peft alone.",
        "The process computes the logits of the same rows, in float32 on the CPU, and goes on from the first four "
        "tokens of a text. A difference above 1e-5 of the largest logit, or a failure to load, ends the export.",
        "--no-load-check leaves it out. It takes the time and the memory of loading the model once more.",
    ),
}
