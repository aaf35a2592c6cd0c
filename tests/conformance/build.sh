#!/usr/bin/env bash
# Builds connectconformance from the Go modules pinned in go.mod and go.sum: see go_program.sh.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../go_program.sh"

version=v1.0.7 # must be what go.mod says
build_go_program conformance connectrpc.com/conformance "$version" connectrpc.com/conformance/cmd/connectconformance --version
