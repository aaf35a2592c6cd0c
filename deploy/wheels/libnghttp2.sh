#!/usr/bin/env bash
# Before cibuildwheel builds the wheels: the static libnghttp2 that goes into them, from a release whose hash is known.
set -euo pipefail
VERSION=1.69.0
SHA256=c866b7477cbb7512ab6863a685027adbb1bb8da8fc3bab7429ed43d3281d5aa9

folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
cd -- "$folder"
curl --fail --silent --show-error --location --remote-name \
  "https://github.com/nghttp2/nghttp2/releases/download/v$VERSION/nghttp2-$VERSION.tar.gz"
echo "$SHA256  nghttp2-$VERSION.tar.gz" | sha256sum --check --quiet
tar -xf "nghttp2-$VERSION.tar.gz"
cd -- "nghttp2-$VERSION"
CFLAGS='-O2 -fPIC' ./configure --quiet --enable-lib-only --disable-shared --enable-static --prefix=/usr/local
make --silent -j"$(nproc)" install
