#!/usr/bin/env bash
# Starts the MLflow server on the head, unless it is running (it survives a restart of Ray) or MLFLOW_TRACKING_URI names
# another server. It has no user accounts: every client that reaches the head's private address can read and write.
set -euo pipefail
. ~/segray/clusters/environment.sh
if [ "$MLFLOW_TRACKING_URI" != "http://$RAY_HEAD_IP:5000" ]; then
  echo "MLFLOW_TRACKING_URI is $MLFLOW_TRACKING_URI; no MLflow server is started on this node"
  exit 0
fi
if curl --silent --fail --max-time 5 --output /dev/null "$MLFLOW_TRACKING_URI/health"; then
  exit 0
fi
# One worker process: only one process should write to SQLite on a network file system.
setsid nohup mlflow server --host "$RAY_HEAD_IP" --port 5000 --workers 1 \
  --allowed-hosts "$RAY_HEAD_IP:5000,localhost:5000,127.0.0.1:5000" \
  --backend-store-uri "$SEGRAY_MLFLOW_STORE" --artifacts-destination "$SEGRAY_SHARED/mlflow/artifacts" \
  >> ~/mlflow-server.log 2>&1 < /dev/null &
