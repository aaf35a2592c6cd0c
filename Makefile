# make up: set up and run the arena · make test: set up and pass the tests
# make conformance: connectconformance's suite, a minute · make check: format, lint, types, layers
# make bench: what a call costs · make chaos: apps that are scaled, restarted and killed, ARGS=MINUTES
# make fuzz: the wire's extension under sanitizers, a minute, ARGS="--seconds N"
# ARGS="…" goes to the program
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
ARGS ?=

.PHONY: up test conformance chaos fuzz check bench setup proto clients clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/house/test_layers.py

test: setup
	$(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile -m "not conformance" $(ARGS)

conformance: setup
	$(BIN)/pytest -q -m conformance $(ARGS)

chaos: setup
	ONELANE_CHAOS=1 $(BIN)/pytest -q -s tests/core/test_handoff_explored.py
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: setup
	$(BIN)/python -m tests.fuzz.sanitized $(ARGS)

up: setup
	$(BIN)/python -m services.arena.drive $(ARGS)

proto: setup
	$(BIN)/onelane proto --root proto --out runtime proto/onelane
	rm -f runtime/onelane/v1/options_pb2_grpc.py* runtime/onelane/v1/control_pb2_grpc.py*
	$(BIN)/onelane proto --root proto --out . proto/services
	$(BIN)/onelane proto --root tests/protos --out .

bench: $(VENV)/.bench-ready
	$(BIN)/python -m tests.bench $(ARGS)

# What it is measured against.
$(VENV)/.bench-ready: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	touch $@

# The tests' stock clients, h2spec, connectconformance and Jaeger: Node.js, Go, Rust, a JDK and Maven are needed; Jaeger
# takes some six minutes, once.
clients: tests/node/node_modules
	tests/h2spec/build.sh
	tests/grpcurl/build.sh
	tests/conformance/build.sh
	tests/tonic/build.sh
	tests/java/build.sh
	tests/jaeger/build.sh

tests/node/node_modules: tests/node/package-lock.json
	npm ci --prefix tests/node --no-audit --no-fund --silent
	touch $@

clean:
	rm -rf $(VENV)
