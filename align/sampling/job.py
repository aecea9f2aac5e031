"""What ``align sample`` is asked to do: settings that do not contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from align.errors import UserError
from align.recipe.sampling import Judge, Sampling
from align.recipe.sections import Source
from align.sampling.choose import Keep
from align.sampling.kept import check_name


@dataclass(frozen=True)
class Job:
    """What to sample, and what to keep of it.

    ``amount`` is how many with ``keep`` top, and the score to exceed with above. ``length_penalty`` is taken off a
    score for each natural log of its text's characters before anything is ranked. ``template_arguments`` win over those
    that the model was trained with.

    Raises:
        UserError: for settings that contradict each other.
    """

    source: Source
    model: str
    out: Path
    sampling: Sampling = field(default_factory=Sampling)
    judge: Judge | None = None
    keep: Keep = "all"
    amount: float | None = None
    length_penalty: float = 0.0
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    allow_code: bool = False

    def __post_init__(self) -> None:
        check_name(self.out)
        samples = self.sampling.samples
        if self.judge is None:
            if self.keep != "all":
                raise UserError(f"--keep {self.keep} needs someone who judges: give --judge, or --keep all.")
            if self.length_penalty:
                raise UserError("--length-penalty is taken off scores, and nothing scores: give --judge.")
            return
        if self.keep == "pair" and samples < 2:
            raise UserError("--keep pair needs at least two samples of each prompt: raise --n.")
        if self.keep == "top" and not 1 <= (self.amount or 0) <= samples:
            raise UserError(f"--keep top:K takes a K from 1 to --n, here {samples}.")
        if self.judge.pair or self.judge.endpoint:
            self.check_compares()

    def check_compares(self) -> None:
        """Refuse what a judge that compares cannot do. Raises UserError."""
        if self.keep not in ("best", "pair"):
            raise UserError(f"--keep {self.keep} needs scores, and this judge compares: --keep best or --keep pair.")
        if self.length_penalty:
            raise UserError("--length-penalty is taken off scores, and this judge compares: leave it out.")
        if self.sampling.samples < 2 or self.sampling.samples & (self.sampling.samples - 1):
            raise UserError(
                f"A judge that compares holds a tournament, which takes 2, 4, 8, 16 ... samples: --n is "
                f"{self.sampling.samples}."
            )

    def settings(self) -> dict[str, Any]:
        """All that samples, scores and choices depend on, but for the model's weights and the prompts."""
        drawn = self.sampling.model_dump(exclude={"batch_size", "server"})
        judge = self.judge.model_dump(exclude_none=True) if self.judge else None
        return {
            "source": self.source.model_dump(exclude_defaults=True),
            "model": self.model,
            "dtype": self.dtype,
            "seed": self.seed,
            "sampling": {**drawn, "server": self.sampling.server is not None},
            "judge": judge,
            "keep": self.keep,
            "amount": self.amount,
            "length_penalty": self.length_penalty,
        }
