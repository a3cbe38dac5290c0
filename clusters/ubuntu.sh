#!/usr/bin/env bash
# Installs the packages that segray needs and Ubuntu 22.04 lacks: Python 3.11 and the NFS client.
set -euo pipefail
if python3.11 -c 'import ensurepip' 2> /dev/null && [ -x /sbin/mount.nfs4 ]; then
  exit 0
fi
# A new machine holds apt's lock for some minutes while it updates itself. No command may ask questions.
apt="sudo env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a apt-get -q -y -o DPkg::Lock::Timeout=600"
$apt update
$apt install nfs-common software-properties-common
sudo add-apt-repository -y ppa:deadsnakes/ppa # Ubuntu's own python3.11 is a release candidate
$apt install python3.11 python3.11-venv
