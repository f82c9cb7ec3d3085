# `make demo` builds the example model and lets it answer, `make test` runs all checks, `make quick`
# one architecture and one scheme through every room.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test quick lint clean

demo: .venv/runs
	$(BIN)/mlc-bridge build examples/models/stdlib-llama-7m-awq -o dist/demo
	$(BIN)/mlc-bridge chat dist/demo --temperature 0 --max-tokens 96 \
		--prompt "Write a Python function \`close\` that closes the connection."

QUICK := tests/test_packing.py tests/test_qtensor.py tests/sources/test_detect.py \
	tests/schemes/test_autoawq.py tests/artifact/test_chat_config.py tests/artifact/test_manifest.py \
	"tests/models/test_architectures.py::test_quantized[llama-q4f16_autoawq]" \
	tests/compiler/test_target.py tests/compiler/test_opt.py tests/tir_schedules/test_rows.py \
	tests/stages/test_gen_config.py tests/engine/test_scheduler.py tests/engine/test_sampler.py \
	tests/cli/test_screens.py tests/cli/test_readme.py

quick: .venv/tests
	$(BIN)/python -m pytest -n 2 --dist loadfile $(QUICK)

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: .venv/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv dist build *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=..." \
		if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

# Stamps, so that a second run installs nothing.
.venv/runs: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q -e '.[tvm]'
	touch $@

# torch first and pinned: the pin resolves to a build without gigabytes of CUDA libraries.
.venv/tests: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -e '.[tvm,torch,serve,structured,dev]'
	touch $@ .venv/runs
