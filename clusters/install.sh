#!/usr/bin/env bash
# Installs segray at its pins into ~/segray-venv, from the pieces of the repository that the launcher copied to ~/segray.
# Where it is installed already, pip only looks, and takes segray itself anew.
set -euo pipefail
cd ~/segray

[ -x ~/segray-venv/bin/python ] || python3.11 -m venv ~/segray-venv
pip="$HOME/segray-venv/bin/pip --quiet --disable-pip-version-check"

# Built from a copy: setuptools would leave folders in the original, and the launcher copies that on to the workers.
copy="$(mktemp -d)"
trap 'rm -rf "$copy"' EXIT
cp -R platform pyproject.toml README.md LICENSE "$copy"

# torch first and pinned: left to the other packages, pip may take another build of it.
$pip install --constraint constraints.txt torch
$pip install --constraint constraints.txt "$copy"

# `ray down` calls `ray` by its bare name, in a login shell; those have this folder on their path.
mkdir -p ~/.local/bin
ln -sf ~/segray-venv/bin/ray ~/.local/bin/ray
chmod 600 ~/.ray/auth_token # Ray writes it readable for all
