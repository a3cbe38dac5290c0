#!/usr/bin/env bash
# Makes the cluster's folders on the shared storage and, unless it is there, the file that SEGRAY_CONFIG names:
# settings every command on the cluster begins with. MLflow is named by MLFLOW_TRACKING_URI, so not here.
set -euo pipefail
. ~/segray.env
mkdir -p "$SEGRAY_SHARED/results" "$SEGRAY_SHARED/mlflow"
settings="$SEGRAY_SHARED/segray.yaml"
[ -e "$settings" ] || printf 'results: %s\n' "$SEGRAY_SHARED/results" > "$settings"
