#!/usr/bin/env bash
# Builds Jaeger (v2, the all-in-one `jaeger` binary) from the Go modules pinned
# in go.mod and go.sum, once, into a cache directory outside the repository.
# Prints the binary's path as the only line on stdout; all else on stderr.
set -euo pipefail

module=github.com/jaegertracing/jaeger
tag=v1.76.0     # as the Go module system knows it: must be what go.mod says
release=v2.13.0 # the same commit's Jaeger v2 release

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cache=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}/jaeger-$release
mkdir -p -- "$cache"
cache=$(cd -- "$cache" && pwd)
binary=$cache/jaeger

die() {
  echo "tests/jaeger/build.sh: $*" >&2
  exit 1
}

if [[ ! -x $binary ]]; then
  command -v go >/dev/null ||
    die "Go is needed to build Jaeger $release, but there is no 'go' on PATH."
  grep -qF "$module $tag" "$here/go.mod" ||
    die "go.mod does not require $module $tag: change the two together."

  # Two test runs that start together: the second waits for the first's build.
  if command -v flock >/dev/null; then
    exec 9>"$cache/.lock"
    flock 9
  fi
fi

if [[ ! -x $binary ]]; then
  echo "building Jaeger $release into $cache (some minutes the first time)" >&2
  partial=$(mktemp -- "$cache/.jaeger.XXXXXX")
  trap 'rm -f -- "$partial"' EXIT
  # 9>&-: a process that outlives the build must not keep the lock.
  (cd -- "$here" && GOWORK=off CGO_ENABLED=0 go build -mod=readonly -buildvcs=false \
    -trimpath -ldflags "-s -w -X $module/internal/version.latestVersion=$release" \
    -o "$partial" "$module/cmd/jaeger") >&2 9>&- ||
    die "go build of Jaeger $release failed; its messages are above."
  chmod 755 -- "$partial"
  # It must at least run before it counts as built.
  "$partial" version >&2 || die "the new Jaeger binary does not run."
  mv -f -- "$partial" "$binary"
  trap - EXIT
fi

printf '%s\n' "$binary"
