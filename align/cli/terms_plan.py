"""What the words of a plan mean; a part of what ``align explain`` knows."""

from __future__ import annotations

from align.cli.terms import Explanation

PLAN: dict[str, Explanation] = {
    "plan": Explanation(
        "What a run will hold on each process at its fullest, and how long it takes, said before a weight is loaded.",
        "From the model's configuration and the lengths of the rows; docs/plan.md says what is counted. On a CPU it is "
        "beside what the process holds before its model is loaded. It is meant to be right to 15 %.",
        "What does not fit ends with exit code 3 and the changes that do. A run that is refused and that you know to "
        "fit: --anyway. The report has plan and measurement side by side.",
    ),
    "activations": Explanation(
        "What layers keep of the largest micro-batch from their forward to their backward, and what one works with.",
        "Each layer's own code is run on tensors without contents, and what it holds is counted.",
        "They grow with the tokens of a micro-batch: train.max_tokens_per_microbatch makes those smaller without "
        "changing a result, train.activation_checkpointing keeps the layers' inputs alone.",
    ),
    "vocabulary head": Explanation(
        "What log-probs take: a tile of logits at a time, and the gradient of the head's weight.",
        "By the sizes of the tiles, which follow the device's memory and multiprocessors.",
        "It is small beside whole logits. Objectives that read whole distributions (kl, rmu's kind) take more.",
    ),
    "gathered weights": Explanation(
        "Weights that are shared out are put together for the layers at work: two layers, embedding and head.",
        "Counted under FSDP2 and ZeRO-3 alone, in the type that forwards compute in.",
        "It does not shrink with more processes; a smaller model or an adapter on whole weights (ddp) does.",
    ),
    "gradient exchange": Explanation(
        "What gradients of several processes are added up in: buckets as large as all of them under DDP.",
        "Counted for launches of several processes.",
        "FSDP2 has none.",
    ),
    "context and fragmentation": Explanation(
        "What a process takes beside its tensors: the device's context, and pieces of memory that nothing fits into.",
        "Measured once, a constant and a share of the tensors; see docs/plan.md.",
        "On a GPU PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True makes the share smaller.",
    ),
}
