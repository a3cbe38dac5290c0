#!/usr/bin/env bash
# Installs what segray's setup needs and Ubuntu 22.04 lacks: Python 3.11 and the client of NFS.
set -euo pipefail
if python3.11 -c 'import ensurepip' 2> /dev/null && [ -x /sbin/mount.nfs4 ]; then
  exit 0
fi
# A machine that has just booted updates itself for some minutes and holds the lock; nothing may ask.
apt="sudo env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get -q -y -o DPkg::Lock::Timeout=600"
$apt update
$apt install nfs-common software-properties-common
sudo add-apt-repository -y ppa:deadsnakes/ppa # Ubuntu's own python3.11 is a release candidate
$apt install python3.11 python3.11-venv
