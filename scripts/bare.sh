#!/usr/bin/env bash
# Runs a command in a fresh clone of the committed state, on a minimal Debian that has only what the project's own
# scripts install. A missing install step therefore fails. Needs root, and debootstrap, which is installed if missing.
#
#   scripts/bare.sh ROOT COMMAND      e.g. scripts/bare.sh /var/tmp/bare 'scripts/quickstart.sh'
#
# ROOT is created by the first call. Later calls reuse it with the packages installed in it; remove it to start afresh.
# The clone is ROOT/srv/clone. Package sources, keys and proxies are copied from the host. The exit code is that of
# COMMAND, 2 for wrong usage, or 4 if ROOT could not be created.
set -euo pipefail
fail() {
  echo "bare: ${*:2}" >&2
  exit "$1"
}
[ $# -eq 2 ] || fail 2 "expected ROOT and COMMAND; see the head of $0"
[ "$(id -u)" -eq 0 ] || fail 2 "needs root, for chroot"
# Mounts below ROOT are visible only to this process and its children, and end with them, so that ROOT can be removed.
[ -n "${BARE_NAMESPACE:-}" ] || BARE_NAMESPACE=1 exec unshare --mount --propagation private "$0" "$@"
root=$1 command=$2
from=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)
[ -z "$(git -C "$from" status --porcelain --untracked-files=no)" ] || echo "bare: warning: uncommitted changes are not part of the clone" >&2
if ! command -v debootstrap >/dev/null; then
  apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap >/dev/null || fail 4 "debootstrap cannot be installed"
fi
if [ ! -e "$root/etc/debian_version" ]; then
  mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' | head -n 1) || true
  [ -n "$mirror" ] || mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n 1) || true
  rm -rf "$root.part"
  # shellcheck disable=SC1091
  debootstrap --variant=minbase "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$root.part" ${mirror:+"$mirror"} >/dev/null ||
    fail 4 "$root.part: debootstrap failed"
  mv "$root.part" "$root"
fi
# Use the host's package sources.
: >"$root/etc/apt/sources.list"
for d in sources.list.d keyrings auth.conf.d trusted.gpg.d; do
  [ -d "/etc/apt/$d" ] || continue
  mkdir -p "$root/etc/apt/$d"
  cp -a "/etc/apt/$d/." "$root/etc/apt/$d/"
done
grep -lZ '^ *Acquire' /etc/apt/apt.conf.d/* 2>/dev/null | xargs -0 -r cp -t "$root/etc/apt/apt.conf.d/" # proxies; no hooks
[ ! -s /etc/apt/sources.list ] || cp /etc/apt/sources.list "$root/etc/apt/sources.list"
[ ! -d /usr/share/keyrings ] || { mkdir -p "$root/usr/share/keyrings" && cp -a /usr/share/keyrings/. "$root/usr/share/keyrings/"; }
mkdir -p "$root/etc/ssl/certs" && cp -a /etc/ssl/certs/. "$root/etc/ssl/certs/"
cp /etc/resolv.conf /etc/hosts "$root/etc/"
rm -rf "$root/srv/clone"
git clone -q "$from" "$root/srv/clone"
for d in proc sys dev; do mount --rbind "/$d" "$root/$d"; done
mapfile -t proxies < <(env | grep -i '^[a-z]*_proxy=' || true)
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/srv "${proxies[@]}" chroot "$root" bash -c "cd /srv/clone && $command"
