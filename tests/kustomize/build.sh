#!/usr/bin/env bash
# Builds kustomize from the Go modules pinned in go.mod and go.sum, once, into a cache directory outside the repository.
# Prints the binary's path as the only line on stdout; all else on stderr.
set -euo pipefail

module=sigs.k8s.io/kustomize/kustomize/v5
version=v5.8.1 # must be what go.mod says

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cache=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}/kustomize-$version
mkdir -p -- "$cache"
binary=$cache/kustomize

die() {
  echo "tests/kustomize/build.sh: $*" >&2
  exit 1
}

if [[ ! -x $binary ]]; then
  command -v go >/dev/null || die "Go is needed to build kustomize $version, but there is no 'go' on PATH."
  grep -qF "$module $version" "$here/go.mod" || die "go.mod does not require $module $version: change the two together."
  echo "building kustomize $version into $cache (half a minute the first time)" >&2
  partial=$(mktemp -d -- "$cache/.build.XXXXXX")
  trap 'rm -rf -- "$partial"' EXIT
  cp -- "$here/go.mod" "$here/go.sum" "$partial/"
  cd -- "$partial"
  GOWORK=off CGO_ENABLED=0 go build -mod=mod -buildvcs=false -trimpath -ldflags "-s -w" -o "$partial/kustomize" \
    "$module" >&2 || die "go build of kustomize $version failed; its messages are above."
  "$partial/kustomize" version >&2 || die "the new kustomize binary does not run."
  mv -f -- "$partial/kustomize" "$binary"
fi

printf '%s\n' "$binary"
