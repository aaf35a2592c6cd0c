#!/usr/bin/env bash
# Builds connectconformance from the Go modules pinned in go.mod and go.sum, once, into a cache directory outside the
# repository. Prints the binary's path as the only line on stdout; all else on stderr.
set -euo pipefail

module=connectrpc.com/conformance
version=v1.0.7 # must be what go.mod says

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cache=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}/conformance-$version
mkdir -p -- "$cache"
binary=$cache/conformance

die() {
  echo "tests/conformance/build.sh: $*" >&2
  exit 1
}

if [[ ! -x $binary ]]; then
  command -v go >/dev/null || die "Go is needed to build connectconformance $version, but there is no 'go' on PATH."
  grep -qF "$module $version" "$here/go.mod" || die "go.mod does not require $module $version: change the two together."
  echo "building connectconformance $version into $cache (a minute or two the first time)" >&2
  partial=$(mktemp -d -- "$cache/.build.XXXXXX")
  trap 'rm -rf -- "$partial"' EXIT
  cp -- "$here/go.mod" "$here/go.sum" "$partial/"
  cd -- "$partial"
  GOWORK=off CGO_ENABLED=0 go build -mod=mod -buildvcs=false -trimpath -ldflags "-s -w" -o "$partial/conformance" \
    "$module/cmd/connectconformance" >&2 || die "go build of connectconformance $version failed; its messages are above."
  "$partial/conformance" --version >&2 || die "the new connectconformance binary does not run."
  mv -f -- "$partial/conformance" "$binary"
fi

printf '%s\n' "$binary"
