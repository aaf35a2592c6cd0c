#!/usr/bin/env bash
# Builds the reference service on tonic from src/ and the crates pinned in Cargo.lock, once for each state of these
# files, into a cache directory outside the repository. Prints the binary's path as the only line on stdout; all else on
# stderr.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
caches=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}
state=$(cd -- "$here" && cat build.sh Cargo.toml Cargo.lock src/*.rs | sha256sum | cut -c1-16)
binary=$caches/tonic-echo-$state/echo

die() {
  echo "tests/bench/tonic/build.sh: $*" >&2
  exit 1
}

if [[ ! -x $binary ]]; then
  command -v cargo >/dev/null || die "Rust is needed to build the peer on tonic, but there is no 'cargo' on PATH."
  mkdir -p -- "${binary%/*}"
  echo "building the peer on tonic into ${binary%/*} (a minute the first time)" >&2
  timeout 900 cargo build --release --locked --manifest-path "$here/Cargo.toml" --target-dir "$caches/cargo-target" >&2 ||
    die "cargo build failed; its messages are above."
  cp -- "$caches/cargo-target/release/tonic-echo" "$binary.partial"
  mv -f -- "$binary.partial" "$binary"
fi

printf '%s\n' "$binary"
