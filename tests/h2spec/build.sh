#!/usr/bin/env bash
# Builds h2spec from the Go modules pinned in go.mod and go.sum, once, into a
# cache directory outside the repository, with one change: its requests are
# gRPC's (POST, te, content-type), so that they reach a handler and are not
# refused as what is not gRPC, before the states that h2spec asks about.
# Prints the binary's path as the only line on stdout; all else on stderr.
set -euo pipefail

module=github.com/summerwind/h2spec
version=v2.2.1 # must be what go.mod says

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cache=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}/h2spec-$version
mkdir -p -- "$cache"
cache=$(cd -- "$cache" && pwd)
binary=$cache/h2spec

die() {
  echo "tests/h2spec/build.sh: $*" >&2
  exit 1
}

if [[ ! -x $binary ]]; then
  command -v go >/dev/null ||
    die "Go is needed to build h2spec $version, but there is no 'go' on PATH."
  grep -qF "$module $version+incompatible" "$here/go.mod" ||
    die "go.mod does not require $module $version: change the two together."

  # Two test runs that start together: the second waits for the first's build.
  if command -v flock >/dev/null; then
    exec 9>"$cache/.lock"
    flock 9
  fi
fi

if [[ ! -x $binary ]]; then
  echo "building h2spec $version into $cache (half a minute the first time)" >&2
  partial=$(mktemp -d -- "$cache/.build.XXXXXX")
  trap 'rm -rf -- "$partial"' EXIT
  cp -- "$here/go.mod" "$here/go.sum" "$partial/"
  cd -- "$partial"
  export GOWORK=off CGO_ENABLED=0
  go mod vendor >&2 || die "the modules of h2spec $version could not be had; Go's messages are above."

  # The authority is the last of CommonHeaders, which nearly every case sends.
  headers=vendor/$module/spec/util.go
  cp -- "$headers" before.go
  sed -i -e 's|HeaderField(":method", "GET")|HeaderField(":method", "POST")|' \
    -e 's|HeaderField(":authority", authority),|& HeaderField("te", "trailers"),\n\t\tHeaderField("content-type", "application/grpc"),|' \
    "$headers"
  [[ $(diff before.go "$headers" | grep -c '^>') == 3 ]] ||
    die "h2spec's CommonHeaders is not what it was."
  rm before.go

  # 9>&-: a process that outlives the build must not keep the lock.
  go build -mod=vendor -buildvcs=false -trimpath -ldflags "-s -w" -o "$partial/h2spec" "$module/cmd/h2spec" >&2 9>&- ||
    die "go build of h2spec $version failed; its messages are above."
  # It must at least run before it counts as built.
  "$partial/h2spec" --version >&2 || die "the new h2spec binary does not run."
  mv -f -- "$partial/h2spec" "$binary"
fi

printf '%s\n' "$binary"
