# Every target sets itself up in .venv; nothing else needs to be installed but Python and a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find fastmerge kernels bindings -type f -not -name '*.pyc')

.PHONY: demo test lint sanitize bench aot triton-36 frameworks gpu tune clean
# Threads that spin while they wait take the cores from those that work, which costs minutes where others run beside. Those
# that sleep at once make the demo's small steps half as slow again.
test: export OMP_WAIT_POLICY := passive
demo: export GOMP_SPINCOUNT := 20000

demo: .venv/installed
	$(BIN)/python bench/demo/run.py

test: .venv/installed lint
	$(BIN)/pytest -n 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd .venv && ../$(BIN)/mypy --config-file ../pyproject.toml -p fastmerge

# The native ops, and what carries bytes to and from a GPU, under the address, undefined-behaviour and thread sanitizers, each
# with a build of its own.
sanitize: sanitize-address sanitize-thread

library = $(shell $(CXX) -print-file-name=$(1))
# But for the test of a system that has no memory for threads.
carriers = tests/ops/test_loader.py tests/ops/test_unloader.py

sanitize-address: build/sanitized/address
	PYTHONPATH=$(CURDIR)/$< LD_PRELOAD='$(call library,libasan.so) $(call library,libstdc++.so)' ASAN_OPTIONS=detect_leaks=0 \
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/ops/test_conformance.py tests/ops/planted.py $(carriers) \
	-k '(conformance or address or loader) and not without_threads'

sanitize-thread: build/sanitized/thread
	PYTHONPATH=$(CURDIR)/$< LD_PRELOAD='$(call library,libtsan.so)' \
	TSAN_OPTIONS='halt_on_error=1 ignore_noninstrumented_modules=1' \
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/ops/test_conformance.py tests/ops/planted.py $(carriers) \
	-k '(blocks and native or threads or thread-race or loader) and not without_threads'

build/sanitized/%: .venv/installed
	CXX=$(CXX) $(BIN)/pip install --no-build-isolation --no-deps --upgrade --target $@ \
	-C build-dir=build/$* -C cmake.define.FASTMERGE_SANITIZE=$* -C install.strip=false .
	touch $@

# Every form of every Triton kernel, compiled without a GPU for those that are supported, and its PTX run; most of an hour.
aot: .venv/installed
	$(BIN)/pytest -n 2 -m aot tests/cuda

# Triton's kernels with the oldest release that is supported, whose interpreter needs an older NumPy too.
triton-36: build/triton-36
	PYTHONPATH=$(CURDIR)/$< $(BIN)/pytest -n 2 tests/cuda

build/triton-36: .venv/installed
	$(BIN)/pip install --target $@ --upgrade 'triton==3.6.0' 'numpy<2.4'
	touch $@

# The bindings with the frameworks themselves, which `make test` skips where they are not installed: PEFT and FusionBench
# beside fastmerge, mergekit in an environment of its own, which finds fastmerge in the other.
frameworks: build/frameworks/installed build/mergekit/installed
	FASTMERGE_MERGEKIT=$(CURDIR)/build/mergekit/bin/python \
	build/frameworks/bin/pytest -n 2 tests/bindings tests/recipe/test_mergekit_peer.py

build/frameworks/installed: build/frameworks/tools .venv/installed
	rm -rf build/frameworks/wheel
	$(BIN)/pip wheel --no-build-isolation --no-deps --wheel-dir build/frameworks/wheel .
	build/frameworks/bin/pip install "$$(ls build/frameworks/wheel/*.whl)[peft,fusion-bench,demo,test]"
	build/frameworks/bin/pip install --no-deps --force-reinstall build/frameworks/wheel/*.whl
	touch $@

build/mergekit/installed: build/mergekit/tools
	build/mergekit/bin/pip install mergekit==0.1.5
	touch $@

build/frameworks/tools build/mergekit/tools: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install torch==2.13.0
	touch $@

# What needs a GPU: conformance, compute-sanitizer, benchmarks; of whole merges none begins after eight minutes.
gpu: .venv/installed
	$(BIN)/python bench/gpu/run.py

# Measures launch settings on this GPU, and writes them to kernels/cuda/settings.json.
tune: .venv/installed
	$(BIN)/python bench/gpu/run.py tune

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
	rm -rf .venv build .demo .quality
