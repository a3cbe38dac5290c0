#!/usr/bin/env bash
# Creates the cluster's folders on the shared storage and, if it does not exist, the file that SEGRAY_CONFIG names: the
# default settings of every command on the cluster. It does not name MLflow, because MLFLOW_TRACKING_URI does.
set -euo pipefail
. ~/segray.env
mkdir -p "$SEGRAY_SHARED/results" "$SEGRAY_SHARED/mlflow"
settings="$SEGRAY_SHARED/segray.yaml"
[ -e "$settings" ] || printf 'results: %s\n' "$SEGRAY_SHARED/results" > "$settings"
