"""The command that serves a policy under its name."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.models.load import adapter_base, adapter_settings

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank takes
_USUAL_RANK = 16  # its default


def policy_name(digest: str) -> str:
    """The name under which a server has to serve the policy of this digest (hex)."""
    return f"align-{digest[:12]}"


def serve_command(checkpoint: Path | str | None, served: str) -> str:
    """What starts vLLM on a checkpoint, under a name. An adapter goes with its base, or is merged where it cannot.

    Args:
        checkpoint: a folder, an adapter's too, or a Hub id.
    """
    end = "--generation-config vllm"  # what the checkpoint says of sampling stays out
    name = "CHECKPOINT" if checkpoint is None else shlex.quote(str(checkpoint))
    if checkpoint is None or not (Path(checkpoint) / "adapter_config.json").is_file():
        return f"vllm serve {name} --served-model-name {served} {end}"
    settings = adapter_settings(Path(checkpoint))
    if not _servable(settings):
        merged = shlex.quote(f"{checkpoint}-merged")
        return f"align export {name} --merge --out {merged} && vllm serve {merged} --served-model-name {served} {end}"
    base = shlex.quote(adapter_base(Path(checkpoint)))
    rank = int(settings["r"])
    wide = f" --max-lora-rank {next(most for most in _RANKS if most >= rank)}" if rank > _USUAL_RANK else ""
    return f"vllm serve {base} --enable-lora --lora-modules {served}={name}{wide} {end}"


def _servable(settings: Mapping[str, Any]) -> bool:
    """Whether vLLM can put an adapter on its base: plain low-rank parts alone, of a rank that it knows."""
    plain = not settings.get("modules_to_save") and not settings.get("use_dora")
    rank = settings.get("r")
    return plain and settings.get("bias", "none") == "none" and isinstance(rank, int) and 0 < rank <= _RANKS[-1]
