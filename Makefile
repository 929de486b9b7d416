# Two commands for a newcomer: `make demo` and `make test`. Each makes .venv and installs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.glass-fast-installed

# Spinning OpenMP threads make a busy small machine 15x slower; models come from the package, never from a hub.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

NATIVE_SOURCES := $(shell find csrc -type f) CMakeLists.txt
OP_FOLDERS := $(wildcard kernels/*/__init__.py)

# A native or metadata change installs again; Python files are linked, so changing them does not.
INSTALL_INPUTS := pyproject.toml setup.py $(NATIVE_SOURCES) $(OP_FOLDERS)

DEMO_SET := $(if $(DEMO_IMAGES),--set 'discover.images=$(DEMO_IMAGES)' --set discover.limit=null)

.PHONY: demo test test-all lint bench install clean

install: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Dependencies first, then the package without build isolation: an isolated build would fetch a second torch.
# The names come from pyproject.toml, the only list.
$(STAMP): $(INSTALL_INPUTS) | $(BIN)/python
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); x = p["project"]["optional-dependencies"]; print("\n".join(dict.fromkeys(r for g in (p["build-system"]["requires"], p["project"]["dependencies"], x["dev"], x["eval"]) for r in g if not r.startswith("glass-fast"))))' > $(VENV)/requirements.txt
	@echo "installing dependencies into $(VENV) (a minute or two)"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r $(VENV)/requirements.txt
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-build-isolation --no-deps -e .
	touch $@

demo: $(STAMP)
	$(BIN)/glass-fast run demo $(DEMO_SET)

test: $(STAMP)
	$(BIN)/python -m pytest -q -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run -Werror

# The result files and the page made from them; wants free cores.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.run --ops --threads 2 --out benchmarks/results/ops_cpu.csv
	$(BIN)/python -m benchmarks.run --stages --threads 2 --out benchmarks/results/stages_cpu.csv
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf build *.egg-info glass_fast/_core*.so glass_fast/_ops*.so glass_fast/build_info.json $(STAMP)
