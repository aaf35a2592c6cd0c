#!/usr/bin/env bash
# Installs Restate's server and Cloudflare's workerd by npm, once for each state of package-lock.json, into a cache
# directory outside the repository. No script of a package is run.
# Prints the path of its node_modules as the only line on stdout; all else on stderr.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
caches=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}
state=$(cd -- "$here" && cat build.sh package.json package-lock.json | sha256sum | cut -c1-16)
cache=$caches/bench-npm-$state

die() {
  echo "tests/bench/npm/build.sh: $*" >&2
  exit 1
}

if [[ ! -e $cache/done ]]; then
  command -v npm >/dev/null || die "Node is needed for Restate and workerd, but there is no 'npm' on PATH."
  mkdir -p -- "$cache"

  # Two runs that start together: the second waits for the first's build.
  if command -v flock >/dev/null; then
    exec 9>"$cache/.lock"
    flock 9
  fi
fi

if [[ ! -e $cache/done ]]; then
  echo "installing Restate and workerd into $cache (a minute the first time)" >&2
  cp -- "$here/package.json" "$here/package-lock.json" "$cache/"
  # 9>&-: a process that outlives the build must not keep the lock.
  (cd -- "$cache" && timeout 600 npm ci --ignore-scripts --no-audit --no-fund >&2 9>&-) ||
    die "npm ci failed; its messages are above."
  touch -- "$cache/done"
fi

printf '%s\n' "$cache/node_modules"
