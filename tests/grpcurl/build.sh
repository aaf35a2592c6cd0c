#!/usr/bin/env bash
# Builds grpcurl from the Go modules pinned in go.mod and go.sum: see go_program.sh.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../go_program.sh"

version=v1.9.3 # must be what go.mod says
build_go_program grpcurl github.com/fullstorydev/grpcurl "$version" github.com/fullstorydev/grpcurl/cmd/grpcurl -version
