"""Only our own lines on the terminal: other libraries' bars and notices are left out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


def without_device_notice() -> None:
    """Leave out what DeepSpeed and bitsandbytes, where installed, announce at their import: what a CPU is without."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # kernels of the Hub


def calm() -> None:
    """For verbs that train nothing: no bars, and no warnings that are not the reader's to mend."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    import datasets
    from transformers.utils import logging as shown

    shown.disable_progress_bar()
    datasets.disable_progress_bars()


def quieten(main: bool) -> None:
    """For a run: no bars, and from other ranks than the first nothing but errors."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error() if not main else transformers.utils.logging.set_verbosity_warning()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    logging.getLogger("liger_kernel.backends").setLevel(logging.ERROR)  # it tries the kernels of other chips
    # of no use to anyone who watches a run: token ids aligned, file times unreliable, tied weights "missing" on resume
    for name in ("trainer", "trainer_utils"):
        logging.getLogger(f"transformers.{name}").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="peft")
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing")  # TRL's own


def unreported() -> AbstractContextManager[None]:
    """Without transformers' report of weights that are new or missing: for those who look, and say or refuse it."""
    return hushed("transformers")


@contextmanager
def hushed(name: str, level: int = logging.ERROR) -> Iterator[None]:
    """Within, a logger says nothing below ``level``."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def silent(*_: Any) -> None:
    """What ranks other than the first say."""
