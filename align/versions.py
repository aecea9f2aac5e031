"""The versions that `align` was tested with; constraints.txt pins the same ones, and a test compares the two."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "align-llm"

# Direct dependencies.
TESTED: Mapping[str, str] = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "pyarrow": "26.0.1",
    "peft": "0.21.2",
    "safetensors": "0.8.0",
    "huggingface_hub": "2.4.0",
    "httpx2": "2.16.2",
    "pydantic": "2.14.3",
    "PyYAML": "6.0.3",
    "rich": "15.0.0",
    "scipy": "1.17.1",
    "matplotlib": "3.11.2",
    "Jinja2": "3.1.6",
    "numpy": "2.4.6",
    "packaging": "26.3",
    "psutil": "7.2.2",
    "nltk": "3.10.4",
    "rouge-score": "0.1.2",
    "scikit-learn": "1.9.1",
}

# The first without a known fault in the gradients of ZeRO-2. In 0.17.6 to 0.18.2 (DeepSpeed issue 7718) they are wrong
# without a word: 0.18.1 misses 0.7 to 0.8 of a bfloat16 gradient in tests/distributed/test_gradients.py. For 0.18.3 to
# 0.19.3 there is issue 8224; 0.19.3 is right in that test, which does not have the case of the report.
DEEPSPEED = "0.19.4"

# Optional ones: name to (what it is for, how to install it).
OPTIONAL: Mapping[str, tuple[str, str]] = {
    "deepspeed": ("ZeRO-2 and ZeRO-3", f"pip install '{DISTRIBUTION}[deepspeed]'"),
    "bitsandbytes": ("model.load_in: 4bit or 8bit", "pip install bitsandbytes"),
    "liger-kernel": ("train.use_liger_kernel: fused layers on a GPU", f"pip install '{DISTRIBUTION}[gpu]'"),
    "sentence-transformers": (
        "sentence encoders: contrast pairs, ConvexDA, RewardFusion",
        f"pip install '{DISTRIBUTION}[encoder]'",
    ),
    "lm_eval": ("general benchmarks", f"pip install '{DISTRIBUTION}[eval]'"),
    "tensorboard": ("train.report_to: tensorboard", "pip install tensorboard"),
}


def deepspeed_problem() -> str | None:
    """A sentence where DeepSpeed is missing, or is one with a known fault in its gradients; else None."""
    from packaging.version import Version

    have, cure = installed("deepspeed"), f"pip install 'deepspeed>={DEEPSPEED}'"
    if have is None:
        return f"DeepSpeed is not installed: {cure}."
    if Version(have) < Version(DEEPSPEED):
        return f"DeepSpeed {have} has a known fault, gradients under ZeRO-2 that are wrong without a word: {cure}."
    return None


def installed(name: str) -> str | None:
    """The installed version of a distribution without its local part (``+cpu``), or None."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None
