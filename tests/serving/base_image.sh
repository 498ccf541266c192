#!/usr/bin/env bash
# Makes the base image for the container's test from Debian's packages: .containers/base.tar (about 60 MB, a minute,
# done once). Needs root, and the Debian packages buildah and mmdebstrap; without them the test is skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
place=.containers
stamp=$place/.made
# Raise this when what is made here changes.
made="1 bookworm python3"
[ -f $stamp ] && [ "$(cat $stamp)" = "$made" ] && exit 0
missing=()
for program in buildah mmdebstrap; do command -v $program >/dev/null || missing+=($program); done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] && [ -n "${CI:-}" ] || { echo "not installed: ${missing[*]}" >&2; exit 1; }
    apt-get update -q >/dev/null
    apt-get install -y -q --no-install-recommends buildah mmdebstrap >/dev/null
fi
rm -rf $place
mkdir -p $place
mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --customize-hook='rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED' bookworm $place/base.tar
echo "$made" >$stamp
