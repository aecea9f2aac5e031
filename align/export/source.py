"""What is exported: the model of a run, of a checkpoint or of any folder, and the model that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from align.errors import UserError, loading
from align.export.damage import damage
from align.models.complete import with_adapter
from align.models.load import adapter_base, adapter_revision, first_line, made_as
from align.models.policy import read_model
from align.models.quantised import quantization
from align.models.reward import check_new_weights, read_reward_model
from align.recipe.sections import Model
from align.runs import checkpoints
from align.runs.damage import read_lock
from align.runs.directory import LOCK
from align.runs.models import ADAPTER, hub_options, located, model_of

_WHOLE = ("model.safetensors", "model.safetensors.index.json")
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
# what sharded training leaves of a model that it did not put together
_PIECES = ("pytorch_model_fsdp_*", "pytorch_model_fsdp.bin", "global_step*", "bf16_zero*", "zero_pp_rank*")


@dataclass(frozen=True)
class Source:
    """A folder with a model or an adapter, by its files alone.

    Attributes:
        folder: holds the weights.
        adapter: whether these are an adapter's.
        base: folder or Hub id of the model that they were trained from; None where nothing says it.
        revision: of a base on the Hub.
        of: what it is a copy of: ``run`` and ``step`` of a run's checkpoint, ``run`` of a run's model, or ``folder``.
        run: the run's directory, or None.
        load_in: how the base was quantised while the adapter was trained, or None.
    """

    folder: Path
    adapter: bool
    base: str | None
    revision: str | None
    of: dict[str, Any]
    run: Path | None = None
    load_in: Any = None

    @property
    def computed(self) -> str:
        """Folder or Hub id of the model that computes: the one under an adapter, else its own."""
        return str(self.base) if self.adapter else str(self.folder)

    @property
    def computed_revision(self) -> str | None:
        """Its revision on the Hub."""
        return self.revision if self.adapter else None

    def config(self, *, of_base: bool = False) -> Any:
        """Configuration of the model that computes, or of the one that it was trained from. Raises UserError."""
        from transformers import AutoConfig

        name, revision = self.computed, self.computed_revision
        if of_base and self.base is not None:
            name, revision = self.base, self.revision
        try:
            return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False, **hub_options(name))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{name} cannot be loaded ({first_line(error)}).") from error

    def scores(self) -> bool:
        """Whether it is a reward model, which scores answers and writes none."""
        if not self.adapter:
            return "SequenceClassification" in made_as(self.config())
        return bool(self.adapter_config().task_type == "SEQ_CLS")

    def adapter_config(self) -> Any:
        """PEFT's configuration of the adapter. Raises UserError."""
        from peft import PeftConfig

        try:
            return PeftConfig.from_pretrained(str(self.folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder / ADAPTER} cannot be used ({first_line(error)}).") from error

    def load(self, say: Callable[[str], Any], *, as_trained: bool = False, dtype: torch.dtype = torch.float32) -> Any:
        """The model on the CPU, with its adapter where it is one; quantised weights are dequantised.

        ``as_trained`` quantises the weights under an adapter first where training did so.

        Raises:
            UserError: where it cannot be loaded, or weights are missing.
        """
        reward = self.scores()
        options: dict[str, Any] = {"dtype": dtype, "revision": self.computed_revision}
        quantised = (getattr(self.config(), "quantization_config", None) or {}).get("quant_method")
        if self.adapter and as_trained and self.load_in is not None:
            options["quantization_config"], quantised = quantization(self.load_in), self.load_in
        try:
            model = (read_reward_model if reward else read_model)(self.computed, **options)
        except UserError as error:
            raise UserError(str(error).removeprefix("model.id: ")) from error
        if quantised is not None:
            model = _dequantised(model, self.computed, quantised, say).to(dtype).cpu()
        if self.adapter:
            model = self._adapted(model)
            if reward:
                check_new_weights(model)
        return model.eval().requires_grad_(False)

    def _adapted(self, model: Any) -> Any:
        def not_put_on(error: Exception) -> str:
            return (
                f"{self.folder}: the adapter cannot be put on {self.base} ({first_line(error)}). Name the model that "
                f"it was trained on in {ADAPTER} (base_model_name_or_path)."
            )

        with loading(not_put_on):
            return with_adapter(model, str(self.folder))


def find(name: str | Path) -> Source:
    """What a run's directory, one of its checkpoints, or another folder holds. Nothing is loaded.

    Raises:
        UserError: where there is no model, or only a part of one.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        raise UserError(f"{name}: no such folder. An export is made of a run, a checkpoint, or a folder with a model.")
    folder = model_of(path)
    run = next((place for place in (path, path.parent) if (place / LOCK).is_file()), None)
    lock = {} if run is None else read_lock(run / LOCK)
    of: dict[str, Any] = {"folder": folder.resolve().name} if run is None else {"run": lock.get("run", "")}
    if run is not None and checkpoints.step_of(path) >= 0:
        of["step"] = _complete(path)
    section = _section(lock)
    adapter = _adapter(folder, run)
    named = None if section is None else located(section.id, Path(str(lock.get("base", "."))))
    base = adapter_base(folder) if adapter else named
    revision = section.revision if section is not None and base == named else None
    if adapter and revision is None:
        revision = adapter_revision(folder)
    load_in = section.load_in if section is not None and adapter else None
    if (why := damage(folder)) is not None:
        raise UserError(f"{folder} cannot be exported: {why}")
    return Source(folder, adapter, base, revision, of, run, load_in)


def _section(lock: dict[str, Any]) -> Model | None:
    """The section ``model`` of a run's recipe; None where the lock holds none that can be read."""
    try:
        return Model.model_validate(lock["recipe"]["model"]) if lock else None
    except (KeyError, ValueError):
        return None


def _complete(checkpoint: Path) -> int:
    """The step of a checkpoint of a run. Raises UserError where it was never finished, or is damaged."""
    try:
        return checkpoints.read(checkpoint, None).step
    except checkpoints.Damaged as error:
        raise UserError(f"{checkpoint} cannot be exported: {error}. Name another checkpoint, or the run.") from error


def _adapter(folder: Path, run: Path | None) -> bool:
    """Whether the folder holds an adapter. Raises UserError where it holds neither one nor a whole model."""
    if several := sorted(place.parent.name for place in folder.glob(f"*/{ADAPTER}")):
        own = ["its own"] * (folder / ADAPTER).is_file()
        raise UserError(
            f"{folder} holds the adapters {', '.join([*own, *several])}, and an export is of one: name the folder of "
            "that one."
        )
    if (folder / ADAPTER).is_file():
        if (folder / _ADAPTER_WEIGHTS).is_file():
            return True
        raise UserError(f"{folder} has no {_ADAPTER_WEIGHTS}: other files of weights, such as pickles, are not read.")
    if (folder / "config.json").is_file() and any((folder / name).is_file() for name in _WHOLE):
        return False
    if pieces := next((found.name for kind in _PIECES for found in sorted(folder.glob(kind))), None):
        whole = "its run left" if run is None else f"{run} leaves at its end"
        raise UserError(
            f"{folder} holds its weights in pieces ({pieces}), which only the processes that wrote them read. Export "
            f"the model that {whole}: it is whole. So are checkpoints with fsdp_state_dict_type: FULL_STATE_DICT, and "
            "under ZeRO-3 with stage3_gather_16bit_weights_on_model_save: true."
        )
    raise UserError(
        f"{folder} holds no model: neither {ADAPTER} nor config.json with {_WHOLE[0]}. Weights as a pickle are not "
        "read. Name a run, one of its checkpoints, or a folder with a model."
    )


def _dequantised(model: Any, name: str, kind: str, say: Callable[[str], Any]) -> Any:
    """The model with plain weights; some are dequantised as they are read."""
    if getattr(model, "hf_quantizer", None) is not None:
        try:
            model = model.dequantize()
        except (NotImplementedError, ValueError, ImportError) as error:
            raise UserError(
                f"{name} is quantised ({kind}), and transformers cannot dequantise it ({first_line(error)}): export "
                "the adapter without --merge."
            ) from error
    say(f"base: {name} is quantised ({kind}); it is dequantised to float32 first, and merged weights are not quantised")
    return model
