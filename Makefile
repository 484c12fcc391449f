# demo, test, lint and bench install what they need: system packages by scripts/install-packages
# (Debian's, as root or through sudo; only what is missing), Python packages into .venv.

PYTHON ?= python3
CARGO ?= cargo
VENV := .venv
BIN := $(VENV)/bin
CELERIAC := target/release/celeriac
RUST := $(shell find crates -name '*.rs' -o -name '*.toml' -o -name '*.lua') Cargo.toml Cargo.lock
SHIM := $(shell find python/celeriac examples -name '*.py')

.PHONY: help demo test test-rust test-python test-interop soak lint bench build clean

help:
	@echo "make demo   reads documents on the embedded broker and shows what it found"
	@echo "make test   runs every test, with servers of its own"
	@echo "make soak   three minutes at full load, watching memory"
	@echo "make lint   rustfmt, clippy, ruff, mypy"
	@echo "make bench  compares celeriac with celery worker"
	@echo "make build  builds $(CELERIAC)"

$(VENV)/%.installed: requirements/%.txt
	scripts/install-packages venv
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

build: $(CELERIAC)

$(CELERIAC): $(RUST) $(SHIM)
	scripts/install-packages build
	$(CARGO) build --release --locked --package celeriac-cli
	touch $@

# DOCS=folder reads documents of your own.
demo: $(CELERIAC) $(VENV)/demo.installed
	$(CELERIAC) --python $(BIN)/python demo --data target/demo $(if $(DOCS),--docs "$(DOCS)")

test: test-rust test-python test-interop

test-rust:
	scripts/install-packages build servers
	$(CARGO) test --locked --workspace

test-python: $(VENV)/test.installed
	scripts/install-packages servers
	$(BIN)/python -m pytest -q python/tests

test-interop: $(CELERIAC) $(VENV)/test.installed
	scripts/install-packages servers
	cd interop && ../$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile $(TESTS)

# Three minutes at full load: nothing may grow.
soak: $(CELERIAC) $(VENV)/test.installed
	scripts/install-packages servers
	cd interop && SOAK_SECONDS=180 ../$(BIN)/python -m pytest -q -s test_recycling.py

lint: $(VENV)/test.installed
	scripts/install-packages build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- --deny warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# ROWS=name,name measures some rows only; QUICK=1 takes few samples.
bench: $(CELERIAC) $(VENV)/bench.installed
	scripts/install-packages servers
	$(BIN)/python bench/compare.py $(if $(QUICK),--quick) $(if $(ROWS),--only $(ROWS))

clean:
	rm -rf target $(VENV)
