# make up: set up and run the arena · make test: set up and pass the tests
# make conformance: connectconformance's suite, a minute · make check: format, lint, types, layers
# make wheel: builds the wheels, compiled and pure, and the sdist, and proves the compiled one in a fresh environment
# make test-wheel: the tests of make test on the compiled wheel
# make image: builds deploy/'s image without an engine, and runs it: some minutes, needs buildah and debootstrap
# make bench: what a call costs, of the compiled wheel · make chaos: apps that are scaled, restarted and killed, ARGS=MINUTES;
#   ARGS="MINUTES --machines": machines of a cluster as network namespaces, which are killed, cut off, stopped (as root)
# make machines: the arena on three machines of a cluster, of which one is killed and one added, needs root
# make simulate: a machine comes, goes and fails among 3 to 100 of ten lanes, simulated: a table, some minutes
# make lock: requirements.lock anew for what pyproject.toml asks, ARGS=--upgrade for the newest of each
# make audit: whether one of them has a known vulnerability · make sbom: dist/onelane.cdx.json, what an installation brings
# make fuzz: the wire's extension under sanitizers, a minute, ARGS="--seconds N"
# make docs: the site of the documentation, in build/docs/site
# ARGS="…" goes to the program
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# What has a wheel installed, and no sources: the tests run from here.
BUILT := $(VENV)-wheel
# What looks at the dependencies is no dependency.
TOOLS := $(VENV)-tools
# What setup and CI install: each with its hashes, for every Python that we promise.
LOCK := requirements.lock
PIP := -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml setup.py MANIFEST.in $(shell find runtime/onelane -name '*.py' -o -name '*.p[yx][xi]' -o -name '*.pxd')
ARGS ?=

.PHONY: up machines test wheel test-wheel conformance image chaos simulate fuzz check bench docs setup proto clients lock audit sbom clean

setup: $(STAMP)

$(STAMP): pyproject.toml $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --require-hashes --requirement $(LOCK)
	$(BIN)/python $(PIP) --editable '.[dev]'
	touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/house/test_layers.py

test: setup
	$(BIN)/pytest -q -n auto --maxprocesses 5 --dist loadfile -m "not conformance and not image" $(ARGS)

wheel: $(BUILT)/.ready
	ONELANE_EXPECT=compiled $(BUILT)/bin/pytest -q tests/wire/test_build.py tests/wire/test_http2_extension.py tests/cli/test_entry.py

test-wheel: $(BUILT)/.ready
	ONELANE_EXPECT=compiled $(BUILT)/bin/pytest -q -n auto --maxprocesses 5 --dist loadfile -m "not conformance and not image" $(ARGS)

# A wheel from the sdist, so that both are whole; with ONELANE_PURE=0 what cannot be compiled is an error. For other
# platforms there is the pure one.
$(BUILT)/.ready: $(STAMP) $(SOURCES)
	rm -rf build dist
	ONELANE_PURE=0 $(BIN)/python -m build --outdir dist .
	ONELANE_PURE=1 $(BIN)/python -m build --wheel --outdir dist .
	$(PYTHON) -m venv --clear $(BUILT)
	$(BUILT)/bin/python $(PIP) --require-hashes --requirement $(LOCK)
	$(BUILT)/bin/python $(PIP) "$$(ls dist/onelane-*-cp*.whl)[dev]"
	touch $@

$(TOOLS)/.ready: pyproject.toml
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(PIP) 'cyclonedx-bom>=7.5' 'pip-audit>=2.10' 'uv>=0.13'
	touch $@

lock: $(TOOLS)/.ready
	$(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev \
		--custom-compile-command "make lock" --output-file $(LOCK) pyproject.toml $(ARGS)

# Strict: a package of which nothing is known is no package without vulnerabilities.
audit: $(TOOLS)/.ready
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --requirement $(LOCK) $(ARGS)

sbom: $(BUILT)/.ready $(TOOLS)/.ready
	$(TOOLS)/bin/uv venv --quiet --clear --python $(BIN)/python build/installed
	$(TOOLS)/bin/uv pip install --quiet --python build/installed --constraint $(LOCK) dist/onelane-*-cp*.whl
	$(TOOLS)/bin/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
		--output-file dist/onelane.cdx.json build/installed

conformance: setup
	$(BIN)/pytest -q -m conformance $(ARGS)

# As root, on Debian or Ubuntu.
image: setup
	tests/image/build.sh
	$(BIN)/pytest -q -m image $(ARGS) tests/house/test_image.py

chaos: setup
	ONELANE_CHAOS=1 $(BIN)/pytest -q -s tests/core/test_handoff_explored.py tests/core/test_lease_explored.py
	$(BIN)/python -m tests.chaos $(ARGS)

simulate: setup
	$(BIN)/python -m tests.simulation $(ARGS)

fuzz: setup
	$(BIN)/python -m tests.fuzz.sanitized $(ARGS)

up: setup
	$(BIN)/python -m services.arena.drive $(ARGS)

# As root, with the packages etcd-server, postgresql, iproute2 and iptables.
machines: setup
	$(BIN)/python -m tests.arena $(ARGS)

docs: setup
	$(BIN)/python -m docs.generator

proto: setup
	$(BIN)/onelane proto --root runtime/onelane/protos --out runtime runtime/onelane/protos
	rm -f runtime/onelane/v1/options_pb2_grpc.py* runtime/onelane/v1/control_pb2_grpc.py* runtime/onelane/v1/xds_pb2_grpc.py*
	$(BIN)/onelane proto --root proto --out . proto/services
	$(BIN)/onelane proto --root tests/protos --out .

# Of the compiled wheel; the pure rows are the editable installation's.
bench: $(BUILT)/.bench-ready
	ONELANE_EXPECT=compiled BENCH_PURE=$(BIN)/python $(BUILT)/bin/python -m tests.bench $(ARGS)

# What it is measured against.
$(BUILT)/.bench-ready: $(BUILT)/.ready
	$(BUILT)/bin/python $(PIP) "$$(ls dist/onelane-*-cp*.whl)[dev,bench]"
	touch $@

# The tests' stock clients, h2spec, connectconformance, kustomize and Jaeger: Node.js, Go, Rust, a JDK and Maven are needed; Jaeger
# takes some six minutes, once.
clients: tests/node/node_modules tests/browser/node_modules
	tests/h2spec/build.sh
	tests/grpcurl/build.sh
	tests/kustomize/build.sh
	tests/grpc_go/build.sh
	tests/grpc_xds/build.sh
	tests/conformance/build.sh
	tests/tonic/build.sh
	tests/java/build.sh
	tests/jaeger/build.sh

tests/node/node_modules: tests/node/package-lock.json
	npm ci --prefix tests/node --no-audit --no-fund --silent
	touch $@

tests/browser/node_modules: tests/browser/package-lock.json
	npm ci --prefix tests/browser --no-audit --no-fund --silent
	touch $@

clean:
	rm -rf $(VENV) $(BUILT) $(TOOLS) build dist
