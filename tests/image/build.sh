#!/usr/bin/env bash
# Makes the base of deploy/'s image without an engine or a registry of images, once, into a cache directory outside the
# repository: a system of this machine's own release, by debootstrap, with that release's Python.
# Prints the path of a launcher of buildah, with a store that has the base as localhost/base, as the only line on
# stdout; all else on stderr. To be run as root, on Debian or Ubuntu.
set -euo pipefail

# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
packages=ca-certificates,python3,python3-dev,python3-venv
cache=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}/image-$release
mkdir -p -- "$cache"
cache=$(cd -- "$cache" && pwd)
launcher=$cache/image

die() {
  echo "tests/image/build.sh: $*" >&2
  exit 1
}

# debootstrap mounts /proc below its folder, and leaves it there where it fails.
remove() {
  local mounted
  mounted=$(awk -v below="$1/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r)
  if [[ -n $mounted ]]; then
    xargs -d '\n' umount <<<"$mounted"
  fi
  rm -rf --one-file-system -- "$1"
}

if [[ ! -x $launcher ]]; then
  for program in buildah debootstrap; do
    command -v "$program" >/dev/null || die "$program is needed to make the base of an image."
  done
  # Two test runs that start together: the second waits for the first's build.
  exec 9>"$cache/.lock"
  flock 9
fi

if [[ ! -x $launcher ]]; then
  echo "making the base of the image in $cache (two minutes the first time)" >&2
  mirror=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
    awk -v release="$release" '$1 == release { print $2; exit }')
  [[ -n $mirror ]] || die "apt has no mirror of $release."
  partial=$(mktemp -d -- "$cache/.build.XXXXXX")
  trap 'remove "$partial"' EXIT
  # 9>&-: a process that outlives the build must not keep the lock.
  debootstrap --variant=minbase --include="$packages" "$release" "$partial/root" "$mirror" >&2 9>&- ||
    die "debootstrap failed; its messages are above."
  # As in Python's own images.
  ln -s python3 "$partial/root/usr/bin/python"

  printf '#!/bin/sh\nexec buildah --storage-driver vfs --root %q --runroot %q "$@"\n' \
    "$cache/store" "$cache/run" >"$partial/image"
  chmod +x -- "$partial/image"
  buildah() { "$partial/image" "$@" 9>&-; }
  container=$(buildah from scratch)
  mounted=$(buildah mount "$container")
  cp -a --one-file-system -- "$partial/root/." "$mounted/"
  buildah umount "$container" >&2
  buildah commit --quiet --rm "$container" localhost/base >&2 || die "buildah cannot write the base."
  mv -f -- "$partial/image" "$launcher"
fi

printf '%s\n' "$launcher"
