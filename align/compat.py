"""Everything that comes from TRL, and whatever is private in transformers or accelerate, passes through here.

What we rely on is checked at import, so that an upgrade which breaks it fails with a sentence and not in the middle of
a run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, TypeAlias

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import huggingface_hub.constants as _hub

_hub.HF_HUB_DISABLE_TELEMETRY = True  # read at import by the hub library, which may have come first

import torch
import transformers
import trl
from accelerate.state import DistributedType, PartialState
from accelerate.utils import fsdp2_prepare_model
from packaging.version import Version
from transformers.integrations import deepspeed as _deepspeed
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.models import prepare_deepspeed, unwrap_model_for_generation

from align.errors import UserError

__all__ = [
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "checkpoints_layers",
    "fixed",
    "fsdp2_prepare_model",
    "loaded_whole",
    "prepare_deepspeed",
    "training_config",
    "unwrap_model_for_generation",
]

Config: TypeAlias = SFTConfig | RewardConfig

_have = transformers.__version__
if Version(_have) < Version("5.21"):
    raise UserError(f"align needs transformers>=5.21 and found {_have}: pip install 'transformers>=5.21'.")
if not hasattr(SFTTrainer, "loss_is_scaled_for_ga"):
    raise UserError(f"transformers {_have} no longer lets a trainer scale its own accumulation, as align does.")
if not Version("1.14") <= Version(trl.__version__) < Version("2"):
    raise UserError(f"align needs trl>=1.14,<2 and found {trl.__version__}: pip install 'trl>=1.14,<2'.")
_OVERRIDDEN = ("compute_loss", "prediction_step", "log", "evaluate", "get_batch_samples", "get_train_dataloader")
for _name in (*_OVERRIDDEN, "_save_checkpoint", "_run_epoch", "_load_best_model"):
    for _kind in (SFTTrainer, RewardTrainer):
        if not callable(getattr(_kind, _name, None)):
            raise UserError(f"trl {trl.__version__} no longer has {_kind.__name__}.{_name}, which align overrides.")


def _fsdp_over_gloo() -> None:
    """Let FSDP2 run over processes of a CPU.

    accelerate 1.15 honours ACCELERATE_USE_FSDP where the processes have accelerators. Elsewhere it makes plain DDP
    without a word (``AcceleratorState.__init__`` lists the kinds, and MULTI_CPU is not among them), though torch shards
    over gloo as well. So CPU processes of a launch that asks for FSDP are presented to it as MULTI_GPU, which it then
    turns into FSDP. ``runs.launch.check_launch`` looks at what came of it, as everywhere.
    """
    original = PartialState.__init__

    def patched(self: PartialState, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        if asked and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU
            self.device = torch.device("cpu")  # accelerate numbers it, and torch knows no second CPU

    PartialState.__init__ = patched


if not {"MULTI_CPU", "MULTI_GPU", "FSDP"} <= set(DistributedType.__members__):
    raise UserError(f"accelerate {version('accelerate')} names its kinds otherwise: pip install 'accelerate==1.15.0'.")
_fsdp_over_gloo()


def training_config(kind: Any = SFTConfig, **kwargs: Any) -> Any:
    """TRL's configuration of ``kind`` with what align fixes: rows come prepared, no column or loss is hidden.

    Raises:
        UserError: where transformers refuses a value.
    """
    # transformers 5.23 calls checkpointing by another name, and warns of the old one even as TRL's own default
    for suffix in ("", "_kwargs"):
        old, new = f"gradient_checkpointing{suffix}", f"activation_checkpointing{suffix}"
        if new in kind.__dataclass_fields__:
            given = kwargs.pop(old, kind.__dataclass_fields__[old].default)
            kwargs.setdefault(new, given)
        elif new in kwargs:
            kwargs[old] = kwargs.pop(new)
    if _deepspeed_on_cpu():
        kwargs.setdefault("ddp_backend", "gloo")  # accelerate knows a backend of its own for accelerators alone
    try:
        return fixed(kind(**{**kwargs, "max_length": None}))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"train: {error}") from error


def checkpoints_layers(args: Any) -> bool:
    """Whether the backward pass computes layers again, by the name that this transformers has for it."""
    name = "activation_checkpointing" if hasattr(args, "activation_checkpointing") else "gradient_checkpointing"
    return bool(getattr(args, name))


def _deepspeed_on_cpu() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true" and not torch.accelerator.is_available()


def fixed(config: Any) -> Any:
    """``config`` with what align needs of it: rows come prepared, and the loss is looked at when it is logged.

    Transformers' filter of losses that are not finite asks the device at every micro-batch; ``Guard`` does not.
    """
    if isinstance(config, SFTConfig):  # a reward trainer sees by the columns that rows are prepared
        config.dataset_kwargs = {"skip_prepare_dataset": True}
    else:
        config.disable_dropout = False  # an adapter's dropout stays; the model's own is switched off in any case
    config.remove_unused_columns = False
    config.logging_nan_inf_filter = False
    return config


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Load models as one process alone would, whatever way training shards them."""
    variable = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # ranks beside the first would get no weights
    before, partition = os.environ.get(variable), _deepspeed._hf_deepspeed_config_weak_ref
    _deepspeed.unset_hf_deepspeed_config()
    os.environ[variable] = "false"
    try:
        yield
    finally:
        _deepspeed._hf_deepspeed_config_weak_ref = partition
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before
