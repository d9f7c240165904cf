# Every target sets itself up in .venv; nothing else needs to be installed but Python and a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find fastmerge kernels bindings -type f -not -name '*.pyc')

.PHONY: demo test lint bench clean
demo: .venv/installed
	$(BIN)/python bench/demo/run.py

test: .venv/installed lint
	$(BIN)/pytest -n 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd .venv && ../$(BIN)/mypy --config-file ../pyproject.toml -p fastmerge

bench: .venv/installed
	$(BIN)/python bench/run.py

# The tests, types and benchmarks are of an installed wheel, as users have it; the build folder is kept, so that only what
# has changed is compiled again.
.venv/installed: .venv/tools $(SOURCES)
	$(BIN)/pip install --no-build-isolation '.[demo,bench,test]'
	touch $@

# torch first and pinned, so that nothing else chooses it.
.venv/tools: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --upgrade pip
	$(BIN)/pip install torch==2.13.0
	$(BIN)/pip install cmake nanobind ninja scikit-build-core
	touch $@

clean:
	rm -rf .venv build .demo
