#!/usr/bin/env bash
# Unpacks onelane and the echo service as a commit of this repository had them, once, into a cache directory outside the
# repository. Prints the folder's path as the only line on stdout; all else on stderr.
set -euo pipefail

# How it was before the path of a call was compiled, and its wire on libnghttp2's callbacks: decision 0027.
commit=4135c3db00502ee5c4610642f87e4eda107f81a3

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
caches=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}
tree=$caches/earlier-$commit

die() {
  echo "tests/bench/earlier/build.sh: $*" >&2
  exit 1
}

if [[ ! -d $tree ]]; then
  command -v git >/dev/null || die "Git is needed for onelane of commit $commit, but there is no 'git' on PATH."
  git -C "$here" cat-file -e "$commit^{commit}" 2>/dev/null ||
    die "commit $commit is not here: the sources are no clone of the repository, or a shallow one."
  mkdir -p -- "$caches"
  partial=$(mktemp -d -- "$caches/earlier-partial.XXXXXX")
  trap 'rm -rf -- "$partial"' EXIT
  # A path of the repository's top: git archive has those below the folder that it runs in.
  git -C "$(git -C "$here" rev-parse --show-toplevel)" archive "$commit" runtime tests/__init__.py tests/echo |
    tar -x -C "$partial" >&2 || die "git archive failed; its messages are above."
  # One that was unpacked meanwhile is the same.
  mv -T -- "$partial" "$tree" 2>/dev/null || [[ -d $tree ]] || die "cannot make $tree."
fi

printf '%s\n' "$tree"
