#!/usr/bin/env bash
# Starts MLflow's server on the head, unless the one that MLFLOW_TRACKING_URI names answers: it runs on while Ray is
# started anew. It has no accounts: who reaches the head's private address may read and write.
set -euo pipefail
. ~/segray/clusters/environment.sh
if [ "$MLFLOW_TRACKING_URI" != "http://$RAY_HEAD_IP:5000" ]; then
  echo "runs are tracked at $MLFLOW_TRACKING_URI; no server is started here"
  exit 0
fi
if curl --silent --fail --max-time 5 --output /dev/null "$MLFLOW_TRACKING_URI/health"; then
  exit 0
fi
# One process: SQLite on a network's file system should be written by one alone.
setsid nohup mlflow server --host "$RAY_HEAD_IP" --port 5000 --workers 1 \
  --allowed-hosts "$RAY_HEAD_IP:5000,localhost:5000,127.0.0.1:5000" \
  --backend-store-uri "$SEGRAY_MLFLOW_STORE" --artifacts-destination "$SEGRAY_SHARED/mlflow/artifacts" \
  >> ~/mlflow-server.log 2>&1 < /dev/null &
