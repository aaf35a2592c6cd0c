# Sourced by the build.sh of a program that Go builds from the modules pinned in go.mod and go.sum beside it.

# build_go_program NAME MODULE VERSION PACKAGE FLAG: builds PACKAGE of MODULE once, into a cache directory outside the
# repository, and prints the binary's path as the only line on stdout; all else on stderr. FLAG: with it the program
# runs and ends.
build_go_program() {
  local name=$1 module=$2 version=$3 package=$4 flag=$5 here cache binary partial
  here=$(cd -- "$(dirname -- "${BASH_SOURCE[1]}")" && pwd)
  cache=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}/$name-$version
  mkdir -p -- "$cache"
  cache=$(cd -- "$cache" && pwd)
  binary=$cache/$name

  if [[ ! -x $binary ]]; then
    command -v go >/dev/null || _die "Go is needed to build $name $version, but there is no 'go' on PATH."
    grep -qF "$module $version" "$here/go.mod" || _die "go.mod does not require $module $version: change the two together."
    echo "building $name $version into $cache (up to two minutes the first time)" >&2
    partial=$(mktemp -d -- "$cache/.build.XXXXXX")
    # shellcheck disable=SC2064 # as it is now
    trap "rm -rf -- '$partial'" EXIT
    cp -- "$here/go.mod" "$here/go.sum" "$partial/"
    cd -- "$partial"
    GOWORK=off CGO_ENABLED=0 go build -mod=mod -buildvcs=false -trimpath -ldflags "-s -w" -o "$partial/$name" \
      "$package" >&2 || _die "go build of $name $version failed; its messages are above."
    "$partial/$name" "$flag" >&2 || _die "the new $name binary does not run."
    mv -f -- "$partial/$name" "$binary"
  fi

  printf '%s\n' "$binary"
}

_die() {
  echo "${0#"$PWD/"}: $*" >&2
  exit 1
}
