# Everything sets itself up: `make reproduce` and `make test` work in a fresh clone with python3,
# make and a package index.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup reproduce smoke test lint format doctor clean distclean

# Trust what the system trusts, as pip does: networks with a certificate of their own need it.
export UV_SYSTEM_CERTS ?= 1

SYNCED := .venv/.synced
RUN := .venv/bin/
SOURCES := $(wildcard third_party/*/*.py third_party/*/*.toml)
# uv sees no new version in a package that a changed hook would build differently.
REBUILD = $(if $(and $(wildcard .venv),$(filter third_party/%,$?)),--reinstall-package pb1-detectron2)

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(SYNCED)  ## install everything into .venv (uv too, if it is missing)

$(SYNCED): pyproject.toml $(SOURCES) .ci/find_uv
	uv="$$(.ci/find_uv)"; "$$uv" sync $(REBUILD)
	touch $@

reproduce: setup  ## Tables 4-7 at mini scale; more options: make reproduce ARGS='--seeds 0,1,2'
	$(RUN)mae-bench reproduce transfer --scale mini $(ARGS)

smoke: setup  ## two iterations of everything
	$(RUN)mae-bench reproduce transfer --scale mini --smoke --work-dir work_dirs/smoke $(ARGS)

lint: setup  ## ruff and mypy
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy

# A file's tests stay together, and each process computes on one thread.
test: lint  ## lint, then all tests, the slow ones too
	OMP_NUM_THREADS=1 $(RUN)pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

format: setup  ## let ruff rewrite the sources
	$(RUN)ruff check --fix .
	$(RUN)ruff format .

doctor: setup  ## what is installed and what fits
	$(RUN)mae-bench doctor

clean:  ## remove caches and the report; keeps runs and the environment
	rm -rf report dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -not -path './.tools/*' -prune -exec rm -rf {} +

distclean: clean  ## remove the environment too; keeps runs
	rm -rf .venv .tools
