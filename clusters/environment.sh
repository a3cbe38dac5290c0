# The environment of every process of the cluster. The launcher's start commands source this file. The first setup
# command writes ~/segray.env, which contains the storage paths of the cluster.
. "$HOME/segray.env"
export PATH="$HOME/segray-venv/bin:$PATH"

export RAY_AUTH_MODE=token # the token is in ~/.ray/auth_token
export RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true NO_ALBUMENTATIONS_UPDATE=1
export RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL=minor # later nodes may have a newer patch version of Python 3.11
export RAY_JOB_STOP_WAIT_TIME_S=60 # the default, 3 s, may not be enough for a checkpoint
ulimit -n 65536 2> /dev/null || ulimit -n "$(ulimit -Hn)" # open files; a machine may have a lower limit
unset OMP_NUM_THREADS PYTHONWARNINGS # the launcher sets them to 1 and ignore, which all workers would inherit

# The launcher sets RAY_HEAD_IP on workers. On the head, Ray determines the address.
if [ -z "${RAY_HEAD_IP:-}" ]; then
  RAY_HEAD_IP="$(python -c 'import ray.util; print(ray.util.get_node_ip_address())')"
  export RAY_HEAD_IP
fi
# Jobs inherit both variables from the node of their driver.
segray_mlflow="http://$RAY_HEAD_IP:${SEGRAY_MLFLOW_PORT:-5000}"
export MLFLOW_TRACKING_URI="${MLFLOW_TRACKING_URI:-$segray_mlflow}"
export SEGRAY_CONFIG="$SEGRAY_SHARED/segray.yaml"
# User name and password of the server that mlflow-server.sh starts. Another server must not receive them.
if [ "$MLFLOW_TRACKING_URI" = "$segray_mlflow" ] && [ -r "$SEGRAY_SHARED/mlflow/credentials" ]; then
  . "$SEGRAY_SHARED/mlflow/credentials"
fi
