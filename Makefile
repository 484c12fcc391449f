# demo, test, lint and bench install what they need: system packages by scripts/install-packages
# (Debian's, as root or through sudo; only what is missing), Python packages into .venv.

PYTHON ?= python3
CARGO ?= cargo
VENV := .venv
BIN := $(VENV)/bin
CELERIAC := target/release/celeriac
RUST := $(shell find crates -name '*.rs' -o -name '*.toml' -o -name '*.lua') Cargo.toml Cargo.lock
SHIM := $(shell find python/celeriac examples -name '*.py')

# What no default has, and is tested all the same. The same everywhere: cargo builds each set of
# features anew.
FEATURES := --features celeriac-backend/mongodb,celeriac-backend/s3

.PHONY: help demo test test-rust test-python test-interop soak ledger fuzz lint bench build clean

help:
	@echo "make demo   reads documents on the embedded broker and shows what it found"
	@echo "make test   runs every test, with servers of its own"
	@echo "make soak   three minutes at full load, watching memory"
	@echo "make ledger kills everything for 20 minutes and counts what is lost and repeated"
	@echo "make fuzz   looks for bytes that break a decoder, a minute for each"
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

# Tried once more, as the interop tests are: servers that take too long to start on a busy machine.
# Without a Docker engine the tests of containers say so and are left out; CELERIAC_DOCKER=required has
# them fail.
test-rust:
	scripts/install-packages build servers
	-scripts/install-packages docker
	$(CARGO) test --locked --workspace $(FEATURES) || \
		$(CARGO) test --locked --workspace $(FEATURES)

test-python: $(VENV)/test.installed
	scripts/install-packages servers
	$(BIN)/python -m pytest -q python/tests

# What fails beside another test is tried once more alone, and shown: a deadline that is generous
# otherwise may pass while both cores are busy.
INTEROP := CELERIAC_QUICKSTART=$(CURDIR)/target/debug/rust-quickstart \
	CELERIAC_CALL=$(CURDIR)/target/debug/examples/call \
	CELERIAC_BACKEND_PEER=$(CURDIR)/target/debug/examples/backend-peer \
	../$(BIN)/python -m pytest
test-interop: $(CELERIAC) $(VENV)/test.installed
	scripts/install-packages build servers
	-scripts/install-packages docker
	$(CARGO) build --locked --workspace --bins --examples $(FEATURES)
	cd interop && rm -rf .pytest_cache && \
		{ $(INTEROP) -q --numprocesses 3 --dist loadfile $(TESTS) || \
		$(INTEROP) -v --last-failed --last-failed-no-failures none $(TESTS); }

# Three minutes at full load: nothing may grow.
soak: $(CELERIAC) $(VENV)/test.installed
	scripts/install-packages servers
	cd interop && SOAK_SECONDS=180 ../$(BIN)/python -m pytest -q -s test_recycling.py

# Ten minutes of celeriac and ten of Celery's worker, into docs/ledger.md. LEDGER_SECONDS=n for each
# of the two, LEDGER_SEED=n repeats a plan, LEDGER_BROKER=redis|rabbitmq|sqlite and
# LEDGER_WORKER=celeriac|celery run a part.
ledger: $(CELERIAC) $(VENV)/test.installed
	scripts/install-packages build servers
	$(BIN)/python ledger/prove.py --write docs/ledger.md \
		$(if $(LEDGER_SECONDS),--seconds $(LEDGER_SECONDS)) $(if $(LEDGER_SEED),--seed $(LEDGER_SEED)) \
		$(if $(LEDGER_BROKER),--broker $(LEDGER_BROKER)) $(if $(LEDGER_WORKER),--worker $(LEDGER_WORKER))

# TARGET=name,name fuzzes some only; FOR=seconds is for each; KEEP=1 has the corpus grow by what is
# found. The tests replay the corpus (crates/celeriac-fuzzing).
comma := ,
fuzz:
	scripts/install-packages build fuzz
	CARGO="$(CARGO)" KEEP="$(KEEP)" fuzz/run $(or $(FOR),60) $(subst $(comma), ,$(TARGET))

lint: $(VENV)/test.installed
	scripts/install-packages build
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --locked --workspace --all-targets $(FEATURES) -- --deny warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# ROWS=name,name measures some rows only; QUICK=1 takes few samples.
bench: $(CELERIAC) $(VENV)/bench.installed
	scripts/install-packages servers
	$(BIN)/python bench/compare.py $(if $(QUICK),--quick) $(if $(ROWS),--only $(ROWS))

clean:
	rm -rf target $(VENV)
