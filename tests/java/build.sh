#!/usr/bin/env bash
# Builds the grpc-java client from src/ and the jars that pom.xml names, once for each state of these files, into a
# cache directory outside the repository. No protoc: its messages are protobuf's DynamicMessage.
# Prints the launcher's path as the only line on stdout; all else on stderr.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
caches=${ONELANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/onelane}
state=$(cd -- "$here" && cat build.sh pom.xml src/*.java | sha256sum | cut -c1-16)
cache=$caches/java-$state
launcher=$cache/java
jars=$caches/grpc-java-jars-$(sha256sum <"$here/pom.xml" | cut -c1-16)

die() {
  echo "tests/java/build.sh: $*" >&2
  exit 1
}

if [[ ! -x $launcher ]]; then
  for tool in java javac mvn; do
    command -v "$tool" >/dev/null ||
      die "A JDK and Maven are needed to build the grpc-java client, but there is no '$tool' on PATH."
  done
  mkdir -p -- "$cache"

  # Two test runs that start together: the second waits for the first's build.
  if command -v flock >/dev/null; then
    exec 9>"$caches/.java-lock"
    flock 9
  fi
fi

if [[ ! -x $launcher ]]; then
  echo "building the grpc-java client into $cache (half a minute the first time)" >&2
  if [[ ! -d $jars ]]; then
    rm -rf -- "$jars.partial"
    # 9>&-: a process that outlives the build must not keep the lock.
    timeout 900 mvn -B -q -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
      -DoutputDirectory="$jars.partial" >&2 9>&- || die "the jars could not be had; Maven's messages are above."
    mv -- "$jars.partial" "$jars"
  fi
  timeout 300 javac -encoding UTF-8 --release 17 -cp "$jars/*" -d "$cache/classes" "$here"/src/*.java >&2 9>&- ||
    die "javac failed; its messages are above."
  # A jar: with a folder in the path of classes, Java keeps no archive of them.
  jar --create --file "$cache/classes.jar" -C "$cache/classes" . >&2 9>&- || die "jar failed; its messages are above."

  # Small and quick to start: its processes live for seconds.
  java=(java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xmx512m -cp "$cache/classes.jar:$jars/*")
  # What a client has loaded that reaches no server is kept as it lies in memory, with the classes of the messages of
  # xDS: without it, loading them is half of the CPU time of a client. A Java that cannot do so goes without.
  GRPC_XDS_BOOTSTRAP_CONFIG='{"xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}],
    "server_features": ["xds_v3"]}], "node": {"id": "a-build"}}' \
    timeout 100 "${java[@]}" -Xlog:disable -XX:ArchiveClassesAtExit="$cache/classes.jsa" Loaded >&2 9>&- || true
  cat >"$launcher.partial" <<END
#!/usr/bin/env bash
exec ${java[*]@Q} -Xshare:auto -Xlog:disable -XX:SharedArchiveFile="$cache/classes.jsa" "\$@"
END
  chmod +x -- "$launcher.partial"
  mv -f -- "$launcher.partial" "$launcher"
fi

printf '%s\n' "$launcher"
