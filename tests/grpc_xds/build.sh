#!/usr/bin/env bash
# Builds the grpc-go client of xDS from main.go and the Go modules pinned in go.mod and go.sum, once for each state of
# these files, into a cache directory outside the repository.
# Prints the binary's path as the only line on stdout; all else on stderr.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
state=$(cd -- "$here" && cat build.sh main.go go.mod go.sum | sha256sum | cut -c1-16)
cache=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}/grpc_xds-$state
mkdir -p -- "$cache"
binary=$cache/grpc_xds

die() {
  echo "tests/grpc_xds/build.sh: $*" >&2
  exit 1
}

if [[ ! -x $binary ]]; then
  command -v go >/dev/null || die "Go is needed to build the client, but there is no 'go' on PATH."
  echo "building the grpc-go client of xDS into $cache (a minute or two the first time)" >&2
  partial=$(mktemp -- "$cache/.build.XXXXXX")
  trap 'rm -f -- "$partial"' EXIT
  cd -- "$here"
  GOWORK=off CGO_ENABLED=0 go build -mod=readonly -buildvcs=false -trimpath -ldflags "-s -w" -o "$partial" . >&2 ||
    die "go build failed; its messages are above."
  mv -f -- "$partial" "$binary"
fi

printf '%s\n' "$binary"
