# The whole life of a checkout: `make demo` needs nothing but Python, make and a package registry.
PYTHON ?= python3
BIN := .venv/bin
# No usage reports to anybody, and no question of a hub: nothing below needs the internet after installation.
# GPT-2's real tokenizer: a copy beside the checkout where there is one, else from the Hub.
TOKENIZER := $(firstword $(wildcard ../shared/data/gpt2-tokenizer) openai-community/gpt2)
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: install demo test searches chaos endurance chat lint bench gpu-check clean
install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "preftune needs Python 3.11 or newer; set PYTHON=/path/to/it")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# moto's S3 server, which the tests start; why it is apart stands in tests/moto.txt.
.venv/moto/installed: tests/moto.txt | .venv/installed
	$(PYTHON) -m venv .venv/moto
	.venv/moto/bin/python -m pip install --quiet --requirement tests/moto.txt
	@touch $@

demo: install
	$(BIN)/preftune run quickstart

chat: install
	$(BIN)/preftune chat

test: install .venv/moto/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not gpu and not network and not searches and not chaos and not endurance'

# Whole searches by the command, and what comes of them: each takes a minute, most of it for starting processes.
searches: install .venv/moto/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m searches

# Whole searches whose processes, nodes and disks are taken away: minutes more than the others have.
# In the order of their files, which lets both processes end at about the same time.
chaos: install .venv/moto/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m chaos

# Five hundred trials of a fake one: what the driver keeps of each.
endurance: install
	$(BIN)/python -m pytest -m endurance

# What only a CUDA device can show: NaN in sampling, random state, bf16, memory.
gpu-check: install
	$(BIN)/python -m pytest -m gpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m bench.prepare_memory --tokenizer $(TOKENIZER)

clean:
	rm -rf .venv build dist *.egg-info
