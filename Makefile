PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SILERO := build/silero_vad/data/silero_vad.onnx
NATIVE := setup.py pyproject.toml $(wildcard rnnfast/*/*.pyx rnnfast/*/*.pxd rnnfast/kernels/*)
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined

.PHONY: demo test slow bench models sanitize clean

demo: $(VENV)/installed $(SILERO)
	$(BIN)/python models/vad_demo.py $(SILERO)

test: $(VENV)/installed
	$(BIN)/python -m pytest

# What takes long or fetches the packages of others.
slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

# rnnfast next to other engines, which are fetched; build/bench.json, .md and charts. Up to an hour on a quiet machine.
bench: $(VENV)/bench
	$(BIN)/python -m bench --plot

# Every model that models/*.md has a page for, made anew: a few minutes each. Their data come with PyPI packages.
models: $(VENV)/models
	@for page in $(filter-out models/README.md,$(wildcard models/*.md)); do \
		echo "$${page%.md}"; $(BIN)/python "$${page%.md}.py" || exit; done

# The suite on a build with the address and undefined-behaviour sanitizers, which is removed afterwards.
sanitize: $(VENV)/installed
	rm -f rnnfast/*/*.so $(VENV)/installed
	RNNFAST_CFLAGS="$(SANITIZE)" LDFLAGS="-fsanitize=address,undefined" \
		$(BIN)/pip install -q -e '.[test]'
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1 $(BIN)/python -m pytest; \
		status=$$?; rm -f rnnfast/*/*.so; exit $$status

clean:
	rm -rf $(VENV) build dist site *.egg-info rnnfast/*/*.so rnnfast/*/_*.c

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# In place: Python files are used as they stand, the rest is compiled.
$(VENV)/installed: $(NATIVE) | $(BIN)/python
	$(BIN)/pip install -q -e '.[test]'
	touch $@

$(VENV)/bench: $(VENV)/installed
	$(BIN)/pip install -q -e '.[bench,plot]'
	touch $@

$(VENV)/models: $(VENV)/installed
	$(BIN)/pip install -q -e '.[models]'
	touch $@

$(SILERO): | $(BIN)/python
	$(BIN)/pip download -q --no-deps --only-binary :all: -d build silero-vad==6.2.3
	$(BIN)/python -m zipfile -e build/silero_vad-6.2.3-*.whl build
	touch $@
