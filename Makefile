# Everything runs in .venv, which is made when it is not there; a second run starts at once.
.PHONY: help demo test check venv test-slow test-page zoo bench benchmark clean
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin

help:  ## say what there is to make
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: .venv/.demo  ## the whole story on real images, in minutes: runs/demo
	$(BIN)/tcnn demo

test: .venv/.dev  ## the tests, in minutes
	$(BIN)/pytest -n auto

check: .venv/.dev  ## format, lint, types, order of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

venv: .venv/.dev  ## set up .venv alone

test-slow: .venv/.dev  ## the tests that take minutes each
	$(BIN)/pytest -n auto -m slow

test-page: .venv/.dev  ## the page in a browser, where Chromium is installed
	$(BIN)/pytest -m page tests/test_page.py

zoo: .venv/.dev  ## every family of timm and torchvision, into docs/zoo.md
	$(BIN)/pytest -n auto -m zoo -p zoo_table --zoo-table docs/zoo.md tests/test_zoo.py

bench: .venv/.dev  ## speed and memory in short, minutes: the tables, and runs/bench
	$(BIN)/python benchmarks/layer.py --short --json runs/bench/layer.json
	$(BIN)/python benchmarks/model.py --short --batch 2 --json runs/bench/recast_resnet50.json
	$(BIN)/python benchmarks/scaling.py --short --model timm:resnet18 --json runs/bench/scaling.json
	$(BIN)/python benchmarks/compile.py --short --json runs/bench/compile.json

benchmark: .venv/.dev  ## all of it, and what each gate and corruption costs, into benchmarks/results
	$(BIN)/python benchmarks/layer.py --json benchmarks/results/layer.json
	$(BIN)/python benchmarks/model.py --json benchmarks/results/recast_resnet50.json
	$(BIN)/python benchmarks/model.py --model tcnn.networks:cifar_resnet20 --size 32 --batch 128 \
	  --runs 9 --bf16 --channels_last --json benchmarks/results/recast_cifar_resnet20.json
	$(BIN)/python benchmarks/scaling.py --json benchmarks/results/scaling.json \
	  --picture docs/images/scaling.png
	$(BIN)/python benchmarks/compile.py --json benchmarks/results/compile.json
	$(BIN)/python benchmarks/gates.py --json benchmarks/results/gates.json
	$(BIN)/python benchmarks/corruptions.py --json benchmarks/results/corruptions.json

clean:  ## remove .venv and what the tools leave
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml | .venv/bin/python
	@echo "Installing into .venv (PyTorch is large: minutes, once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all]'
	@touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	@echo "Installing into .venv (PyTorch is large: minutes, once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all,dev]'
# What corruptions are tested against. It asks for the OpenCV with windows, which would overwrite the
# one without that is used here, so its own requirements are left out; they are in "dev".
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps imagecorruptions==1.1.2
	@touch $@
