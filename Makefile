# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extra arguments for pip, for example to name the index of torch's CPU build.
PIP_ARGS ?=

FAST := not slow and not benchmark and not gpu

.PHONY: demo test lint slow benchmarks clean help

help:
	@echo "make demo        build $(VENV), then images -> registered model -> scored archive -> report"
	@echo "make test        the same set-up, then the test suite"
	@echo "make slow        the slow tests (tens of minutes)"
	@echo "make benchmarks  measurements against peers"
	@echo "make lint        format check, lint, types, spelling"

demo: $(VENV)/.stamp-install
	@echo "set-up took $$(cat $(VENV)/.set-up-seconds) s (timed apart from the road)"
	$(BIN)/resnet run demo
	@echo "in this shell first:"
	@echo "  source $(BIN)/activate"

# Tests that start Ray, MLflow or commands come by themselves: two of them at once would share the cores.
test: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "$(FAST) and not integration and not e2e"
	$(BIN)/python -m pytest -m "$(FAST) and (integration or e2e)"

slow: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -m slow

benchmarks: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -m benchmark -s

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell pipelines resnet_models cluster docker README.md

$(VENV)/.stamp-install: pyproject.toml constraints.txt
	@date +%s > .stamp-started
	@echo "building $(VENV): some minutes and, with torch's CUDA build, about 7 GB (README: the CPU build is 2 GB)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable .
	@echo $$(( $$(date +%s) - $$(cat .stamp-started) )) > $(VENV)/.set-up-seconds; rm -f .stamp-started
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev,onnx]'
	@touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
