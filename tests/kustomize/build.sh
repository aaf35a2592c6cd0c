#!/usr/bin/env bash
# Builds kustomize from the Go modules pinned in go.mod and go.sum: see go_program.sh.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../go_program.sh"

version=v5.8.1 # must be what go.mod says
build_go_program kustomize sigs.k8s.io/kustomize/kustomize/v5 "$version" sigs.k8s.io/kustomize/kustomize/v5 version
