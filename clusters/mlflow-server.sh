#!/usr/bin/env bash
# Starts the MLflow server on the head, unless it is running (it survives a restart of Ray) or MLFLOW_TRACKING_URI names
# another server. Every request needs a user name and a password. The first start creates the administrator `segray` and
# writes its password to $SEGRAY_SHARED/mlflow/credentials, which environment.sh reads on every node.
set -euo pipefail
umask 077
. ~/segray/clusters/environment.sh
port="${SEGRAY_MLFLOW_PORT:-5000}"
if [ "$MLFLOW_TRACKING_URI" != "$segray_mlflow" ]; then
  echo "MLFLOW_TRACKING_URI is $MLFLOW_TRACKING_URI; no MLflow server is started on this node"
  exit 0
fi
if curl --silent --fail --max-time 5 --output /dev/null "$MLFLOW_TRACKING_URI/health"; then
  # /health needs no password, so only another request shows whether the server has accounts.
  status="$(curl --silent --max-time 5 --output /dev/null --write-out '%{http_code}' \
    "$MLFLOW_TRACKING_URI/api/2.0/mlflow/registered-models/search")"
  if [ "$status" != 401 ]; then
    echo "the MLflow server at $MLFLOW_TRACKING_URI answers without a password (status $status, expected 401);" \
      "stop it and repeat the command: it was started by an earlier release" >&2
    exit 1
  fi
  exit 0
fi

random_hex() { # 48 digits
  od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}
mkdir -p "$SEGRAY_SHARED/mlflow"
credentials="$SEGRAY_SHARED/mlflow/credentials"
if [ ! -s "$credentials" ]; then
  printf 'export MLFLOW_TRACKING_USERNAME=segray\nexport MLFLOW_TRACKING_PASSWORD=%s\n' "$(random_hex)" > "$credentials"
fi
. "$credentials"
printf '[mlflow]\n%s\n%s\n%s\n' "default_permission = READ" "database_uri = sqlite:///$SEGRAY_SHARED/mlflow/accounts.db" \
  "authorization_function = mlflow.server.auth:authenticate_request_basic_auth" > "$SEGRAY_SHARED/mlflow/accounts.ini"

# The environment, because other users of the machine can read command lines. Only the first start uses the password.
export MLFLOW_AUTH_CONFIG_PATH="$SEGRAY_SHARED/mlflow/accounts.ini"
export MLFLOW_AUTH_ADMIN_USERNAME="$MLFLOW_TRACKING_USERNAME" MLFLOW_AUTH_ADMIN_PASSWORD="$MLFLOW_TRACKING_PASSWORD"
MLFLOW_FLASK_SERVER_SECRET_KEY="$(random_hex)"
export MLFLOW_FLASK_SERVER_SECRET_KEY
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # eight processes for MLflow's own jobs, which segray does not use
# One worker process: only one process should write to SQLite on a network file system.
setsid nohup mlflow server --app-name basic-auth --host "$RAY_HEAD_IP" --port "$port" --workers 1 \
  --allowed-hosts "$RAY_HEAD_IP:$port,localhost:$port,127.0.0.1:$port" \
  --backend-store-uri "$SEGRAY_MLFLOW_STORE" --artifacts-destination "$SEGRAY_SHARED/mlflow/artifacts" \
  >> ~/mlflow-server.log 2>&1 < /dev/null &
