#!/bin/sh
# What the tests use beside Python, from Debian: Chromium, in which the evaluation's report is looked at.
# Where it cannot be installed, without root or apt or a mirror, the test that needs it is skipped.
set -eu
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done
install() {
    [ "$(id -u)" -eq 0 ] && apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium
}
install >/dev/null || echo "no Chromium here, and it cannot be installed: no test looks at a report" >&2
