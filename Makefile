# Octavo's front door for people who build it. `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Torch is a test oracle only. Install a CPU build first if your index serves CUDA builds by default.
TORCH ?= torch==2.13.0
DEMO_PROMPT ?= Give three tips for learning to cook.

.PHONY: demo test lint unit interop native check sanitize fuzz accept wheel wheel-aarch64 clean

demo: $(VENV)/.runtime
	$(BIN)/octavo run smollm2-135m "$(DEMO_PROMPT)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

SOURCES := $(shell find src native -type f -name '*.py' -o -type f -name '*.cc' -o -type f -name '*.h' -o -type f -name '*.inl')

$(VENV)/.runtime: pyproject.toml CMakeLists.txt $(SOURCES) | $(BIN)/python
	$(PIP) install -q .
	touch $@

# Everything for development. Build tools live in the environment, so that a rebuild is incremental.
$(VENV)/.tools: pyproject.toml | $(BIN)/python
	$(PIP) install -q "$(TORCH)"
	$(PIP) install -q "scikit-build-core>=0.10" "nanobind>=2.4" cmake ninja
	touch $@

$(VENV)/.dev: $(VENV)/.tools pyproject.toml CMakeLists.txt $(SOURCES)
	$(PIP) install -q --no-build-isolation -C cmake.define.OCTAVO_WERROR=ON ".[dev,lint]"
	touch $@ $(VENV)/.runtime

test: lint unit

unit: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not interop" -n 2 --dist loadfile

# Other projects' clients against the server; OpenAI's for Node is fetched into the cache.
interop: $(VENV)/.dev
	$(PIP) install -q --no-build-isolation ".[interop]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m interop

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks scripts examples
	$(BIN)/ruff format --check src tests benchmarks scripts examples
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/check_style.py
	find native -name '*.cc' -o -name '*.h' -o -name '*.inl' | xargs $(BIN)/clang-format --dry-run --Werror

# The extension alone, into src/, for work without installing (PYTHONPATH=src).
native: $(VENV)/.tools
	cmake -S . -B build/dev -G Ninja -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
		-DCMAKE_BUILD_TYPE=Release -DOCTAVO_WERROR=ON
	cmake --build build/dev
	install build/dev/_native*.so src/octavo/  # a new file: the old one may be mapped

# Every kernel against `generic`, and no object of an instruction set that exports code of its own.
check: $(VENV)/.tools
	PATH=$(abspath $(BIN)):$$PATH cmake -S . -B build/check -G Ninja -DOCTAVO_MODULE=OFF -DCMAKE_BUILD_TYPE=Release -DOCTAVO_WERROR=ON
	PATH=$(abspath $(BIN)):$$PATH cmake --build build/check --target octavo_check
	build/check/octavo_check --trap-avxvnni
	$(BIN)/python scripts/check_isa_objects.py \
		build/check/CMakeFiles/octavo_kernels.dir/native/kernels/isa_*.o

sanitize: $(VENV)/.dev
	$(BIN)/python scripts/sanitize.py

fuzz: $(VENV)/.dev
	$(BIN)/python scripts/fuzz.py --cases 100000

accept: $(VENV)/.dev
	$(BIN)/python scripts/accept.py

wheel: $(BIN)/python
	$(BIN)/python scripts/build_wheel.py

# Needs g++-aarch64-linux-gnu, and AARCH64_PYTHON_INCLUDE (docs/native.md).
wheel-aarch64: $(BIN)/python
	$(BIN)/python scripts/build_wheel.py --aarch64

clean:
	rm -rf build dist $(VENV)
