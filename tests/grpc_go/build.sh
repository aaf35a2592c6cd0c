#!/usr/bin/env bash
# Fetches the Go modules pinned in go.mod and go.sum, and compiles what the tests' programs are linked with, into Go's
# own caches. Nothing is printed on stdout.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
if ! command -v go >/dev/null; then
  echo "tests/grpc_go/build.sh: Go is needed, but there is no 'go' on PATH." >&2
  exit 1
fi
cd -- "$here"
# As tests/docs/test_stock_clients.py calls it: other flags would compile it again.
GOWORK=off GOFLAGS=-mod=readonly CGO_ENABLED=0 go build tool google.golang.org/grpc/balancer/ringhash \
  google.golang.org/grpc/resolver/manual >&2
for name in protoc-gen-go protoc-gen-go-grpc; do
  GOWORK=off GOFLAGS=-mod=readonly CGO_ENABLED=0 go tool -n "$name" >&2
done
