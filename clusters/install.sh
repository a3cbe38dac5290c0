#!/usr/bin/env bash
# Installs segray and the pinned packages in ~/segray-venv, from the files that the launcher copied to ~/segray.
# If the packages are installed, only segray itself is installed again.
set -euo pipefail
cd ~/segray

[ -x ~/segray-venv/bin/python ] || python3.11 -m venv ~/segray-venv
pip="$HOME/segray-venv/bin/pip --quiet --disable-pip-version-check"

# Build from a copy: setuptools would add folders to ~/segray, which the launcher copies to the workers.
copy="$(mktemp -d)"
trap 'rm -rf "$copy"' EXIT
cp -R platform pyproject.toml README.md LICENSE "$copy"

# Install torch first and pinned; as a dependency of other packages, pip may select another build.
$pip install --constraint constraints.txt torch
$pip install --constraint constraints.txt "$copy"

# `ray down` calls `ray` in a login shell, which has this folder on its path.
mkdir -p ~/.local/bin
ln -sf ~/segray-venv/bin/ray ~/.local/bin/ray
chmod 600 ~/.ray/auth_token # Ray creates it readable for all users
