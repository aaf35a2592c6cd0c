#!/usr/bin/env bash
# Builds the reference service on grpc-go from the modules pinned in go.mod and go.sum, once for each state of these
# files, into a cache directory outside the repository. No protoc: its generated code is here (`echo.proto` has the
# source). Prints the binary's path as the only line on stdout; all else on stderr.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
caches=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}
state=$(cd -- "$here" && cat build.sh go.mod go.sum main.go echo/*.go | sha256sum | cut -c1-16)
binary=$caches/grpc-go-$state/echo

die() {
  echo "tests/bench/grpc_go/build.sh: $*" >&2
  exit 1
}

if [[ ! -x $binary ]]; then
  command -v go >/dev/null || die "Go is needed to build the peer on grpc-go, but there is no 'go' on PATH."
  mkdir -p -- "${binary%/*}"
  echo "building the peer on grpc-go into ${binary%/*} (a minute the first time)" >&2
  (cd -- "$here" && GOWORK=off CGO_ENABLED=0 timeout 900 go build -buildvcs=false -trimpath -o "$binary.partial" .) >&2 ||
    die "go build failed; its messages are above."
  mv -f -- "$binary.partial" "$binary"
fi

printf '%s\n' "$binary"
