# chat | serve | test | test-all | bench | check | slow | sanitize | fuzz | wheel | families | nano | clean
#
# Requires Python 3.11 or newer with venv and headers, a C++ compiler and make; everything else is installed in .venv.
# Only answers go to standard output, so that the output of `echo question | make chat` can be piped.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
PEERS   := $(VENV)/peers
CLIENTS := $(VENV)/clients
AXE     := $(CLIENTS)/axe-core-4.14.1
ENGINES := llama ik-llama openvino vllm transformers
NATIVE  := $(wildcard CMakeLists.txt) $(shell find freedive/native -name '*.cpp' -o -name '*.h' -o -name '*.inl')

MAKEFLAGS += --no-print-directory
.SILENT:
.DELETE_ON_ERROR:
.PHONY: chat serve test test-all bench check slow sanitize fuzz wheel families nano clean browser

chat serve: $(VENV)/installed
	exec $(BIN)/freedive $@

bench: $(VENV)/installed $(VENV)/test-tools $(VENV)/quality-tools $(ENGINES:%=$(PEERS)/%/installed)
	$(BIN)/python bench/quality.py
	$(BIN)/python bench/peers.py --tidy

# `make test` is for every change; `make test-all` runs the other tests, except those that take minutes (`make slow`).
# Tests that measure time, end processes or draw a page run one at a time.
COMPUTING := matrix or training
ALONE := clients or faults or browser
LEFT_OUT := $(COMPUTING) or $(ALONE)
PARALLEL := -n auto --maxprocesses 8 --dist loadfile

test: $(VENV)/installed $(VENV)/test-tools
	$(BIN)/python -m pytest $(PARALLEL) -m "not (slow or $(LEFT_OUT))"

test-all: $(VENV)/installed $(VENV)/test-tools $(CLIENTS)/installed $(AXE) browser
	$(BIN)/python -m pytest $(PARALLEL) -m "($(COMPUTING)) and not (slow or $(ALONE))"
	$(BIN)/python -m pytest -m "($(ALONE)) and not slow"

slow: $(VENV)/installed $(VENV)/test-tools browser
	$(BIN)/python -m pytest -m slow

# The chat page is tested in Chromium, which is installed if this user may do that; otherwise its tests are skipped.
browser:
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || $(INSTALL_BROWSER) || \
	    echo "the tests of the chat page need Chromium and are skipped: install chromium and chromium-driver" >&2

INSTALL_BROWSER := { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && export DEBIAN_FRONTEND=noninteractive && \
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; } >&2 </dev/null

# Wheels need no compiler to be installed: one is for Python 3.11, one for 3.12 and later (stable ABI).
WHEEL_PYTHONS ?= python3.11 python3.12
wheel: $(VENV)/installed $(VENV)/wheel-tools
	rm -rf build/wheels && mkdir -p build/wheels dist
	for python in $(WHEEL_PYTHONS); do \
	    if $$python -c "" 2>/dev/null; then \
	        echo "building a wheel with $$python" >&2; \
	        $$python -m pip wheel --quiet --no-deps --disable-pip-version-check --wheel-dir build/wheels \
	            --config-settings=cmake.define.FREEDIVE_STATIC_RUNTIME=ON . </dev/null >&2 || exit 1; \
	    else echo "$$python is not here, so its wheel is not built (WHEEL_PYTHONS names others)" >&2; fi; \
	done
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheels/*.whl
	ls dist/*.whl

# Tests of the kernels' inputs and outputs with the address and undefined-behaviour sanitizers, and of the thread team
# and of experts on disk with the thread sanitizer.
SANITIZED := tests/native/test_binding.py tests/checkpoint/test_model_folder.py tests/engine/test_sampler.py tests/ops/test_shapes.py
PAGED := paged_experts record_reader memory checksum threads

sanitize: $(VENV)/installed $(VENV)/test-tools
	mkdir -p build
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake -S . -B build/sanitize -G Ninja -DFREEDIVE_SANITIZE=ON \
	  -DCMAKE_BUILD_TYPE=None -DPython_EXECUTABLE="$(abspath $(BIN))/python" >build/sanitize.log
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cmake --build build/sanitize >>build/sanitize.log
	$(under_asan) $(BIN)/python -m pytest -p sanitized -s -k "not fast_enough" $(SANITIZED)
	$(under_asan) $(BIN)/python tests/fuzz/fuzz.py --seconds 20
	$${CXX:-c++} -std=c++20 -O1 -g1 -pthread -fsanitize=thread tests/native/share_tasks.cpp freedive/native/threads.cpp -o build/sanitize/share_tasks
	build/sanitize/share_tasks
	$${CXX:-c++} -std=c++20 -O1 -g1 -pthread -fsanitize=thread tests/native/page_experts.cpp $(PAGED:%=freedive/native/%.cpp) -o build/sanitize/page_experts
	build/sanitize/page_experts build/sanitize

library    = $$($${CXX:-c++} -print-file-name=$(1))
under_asan = LD_PRELOAD="$(call library,libasan.so) $(call library,libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
             PYTHONMALLOC=malloc PYTHONPATH=tests/native FREEDIVE_SANITIZED=build/sanitize

# Tries mutated models for SECONDS, or COUNT of each kind.
SECONDS ?= 120
fuzz: $(VENV)/installed $(VENV)/test-tools
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS) $(if $(COUNT),--count $(COUNT))

families: $(VENV)/installed $(VENV)/test-tools
	$(BIN)/python -m pytest tests/ops tests/model --ignore tests/model/test_families_doc.py -m "not slow" --junitxml=build/families.xml -o junit_family=xunit1
	$(BIN)/python tests/families_table.py build/families.xml >docs/families.md

# Trains the model nano of the catalogue again, in half an hour.
nano: $(VENV)/installed $(VENV)/train-tools
	rm -rf build/nano
	$(BIN)/freedive train speedrun nano --run build/nano
	cp build/nano/model-Q8_0.gguf freedive/hub/nano.gguf
	cp build/nano/report.html docs/nano.html

check: $(VENV)/installed $(VENV)/check-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	for fixtures in tests/*/conftest.py; do $(BIN)/mypy --config-file tests/mypy.ini $$fixtures || exit 1; done
	$(BIN)/clang-format --dry-run -Werror $(filter %.cpp %.h %.inl,$(NATIVE))

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The installation is editable: Python files are not copied, and only changed C++ is compiled again.
$(VENV)/installed: pyproject.toml $(NATIVE) | $(VENV)/build-tools
	echo "installing freedive (the kernels take a minute or two)" >&2
	$(call pip,--no-build-isolation --editable .)
	touch $@

$(VENV)/build-tools:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.x")'
	$(PYTHON) -c 'import os, sys, sysconfig; os.path.exists(sysconfig.get_path("include") + "/Python.h") or sys.exit("The headers of Python are needed (python3-dev, or python3-devel)")'
	command -v $${CXX:-c++} >/dev/null || { echo "A C++ compiler is needed, such as g++ (or set CXX)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) >&2
	$(call pip_listed,build)
	$(call pip,cmake ninja)
	touch $@

$(VENV)/%-tools: pyproject.toml | $(VENV)/build-tools
	echo "installing the packages of $*" >&2
	$(call pip_listed,$*)
	touch $@

# Clients, and Node for one of them, have a Python environment of their own, since they need other versions of tested
# packages. There are a hundred packages, for which pip takes minutes; uv is faster.
$(CLIENTS)/installed: private BIN = $(@D)/bin
$(CLIENTS)/installed: pyproject.toml | $(VENV)/build-tools
	echo "installing clients to test with" >&2
	$(PYTHON) -m venv $(@D) >&2
	$(call pip,uv)
	$(call listed,clients)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement $@.txt </dev/null >&2
	$(BIN)/npm install --silent --no-audit --no-fund --prefix $(@D) openai@7.59.0 </dev/null >&2
	touch $@

# The rules of accessibility that the chat page is tested with.
$(AXE): private BIN = $(@D)/bin
$(AXE): | $(CLIENTS)/installed
	$(BIN)/npm install --silent --no-audit --no-fund --prefix $(@D) $(@F:axe-core-%=axe-core@%) </dev/null >&2
	touch $@

# Every peer has a Python environment of its own. One that cannot be installed is omitted from the comparison, which
# reports that. llama.cpp is built for this processor, but without AMX, whose code g++ 12 miscompiles (-march=native
# would include it). A wheel in pip's cache may have been built with other options. The torch packages for images and audio are
# built for another torch than the CPU one, and prevent transformers and vLLM from starting.
$(PEERS)/%/installed: private BIN = $(@D)/bin
$(PEERS)/%/installed: pyproject.toml | $(VENV)/build-tools
	echo "installing $* to compare with (some minutes)" >&2
	$(PYTHON) -m venv $(@D) >&2
	-export CMAKE_ARGS="$(PEER_OPTIONS)" PIP_NO_CACHE_DIR=1; $(call pip_listed,peer-$*)
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec >&2
	touch $@

PEER_OPTIONS = $(if $(shell grep -sw amx_tile /proc/cpuinfo),-DGGML_NATIVE=OFF $(ALL_BUT_AMX:%=-DGGML_%=ON),-DGGML_NATIVE=ON)
ALL_BUT_AMX := SSE42 AVX AVX2 FMA F16C BMI2 AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16

# $(call pip,ARGUMENTS) installs packages. $(call listed,GROUP) writes a group of pyproject.toml to a file, and
# $(call pip_listed,GROUP) installs that group. None of them reads standard input.
pip = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(1) </dev/null >&2
listed = $(BIN)/python -c '$(LIST)' $(1) >$@.txt
pip_listed = $(call listed,$(1)) && $(call pip,--requirement $@.txt)
LIST := import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb")); \
    groups = project["dependency-groups"] | project["project"]["optional-dependencies"]; \
    groups["build"] = project["build-system"]["requires"]; print(*groups[sys.argv[1]], sep="\n")
