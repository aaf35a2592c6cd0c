#!/usr/bin/env bash
# Builds the tonic client from src/ and the crates pinned in Cargo.lock, once for each state of these files, into a
# cache directory outside the repository. No protoc: its stub is written by hand.
# Prints the binary's path as the only line on stdout; all else on stderr.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
caches=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}
state=$(cd -- "$here" && cat build.sh Cargo.toml Cargo.lock src/*.rs | sha256sum | cut -c1-16)
cache=$caches/tonic-$state
binary=$cache/tonic

die() {
  echo "tests/tonic/build.sh: $*" >&2
  exit 1
}

if [[ ! -x $binary ]]; then
  command -v cargo >/dev/null || die "Rust is needed to build the tonic client, but there is no 'cargo' on PATH."
  mkdir -p -- "$cache"

  # Two test runs that start together: the second waits for the first's build.
  if command -v flock >/dev/null; then
    exec 9>"$cache/.lock"
    flock 9
  fi
fi

if [[ ! -x $binary ]]; then
  echo "building the tonic client into $cache (a minute the first time)" >&2
  # The crates are compiled once for all states of our own files. 9>&-: a process that outlives the build must not keep
  # the lock.
  timeout 900 cargo build --locked --manifest-path "$here/Cargo.toml" --target-dir "$caches/cargo-target" >&2 9>&- ||
    die "cargo build of the tonic client failed; its messages are above."
  cp -- "$caches/cargo-target/debug/tonic" "$binary.partial"
  mv -f -- "$binary.partial" "$binary"
fi

printf '%s\n' "$binary"
