# What every process of the cluster is started with. The launcher's start commands source it; ~/segray.env, which holds
# the cluster's own places, is written by the first setup command.
. "$HOME/segray.env"
export PATH="$HOME/segray-venv/bin:$PATH"

export RAY_AUTH_MODE=token # of ~/.ray/auth_token
export RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true NO_ALBUMENTATIONS_UPDATE=1
export RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL=minor # nodes that come later may get a newer patch of Python 3.11
export RAY_JOB_STOP_WAIT_TIME_S=60 # `ray job stop` kills after 3 s otherwise, in the middle of a checkpoint
ulimit -n 65536 2> /dev/null || ulimit -n "$(ulimit -Hn)" # open files; a machine may allow fewer
unset OMP_NUM_THREADS PYTHONWARNINGS # the launcher sets them to 1 and ignore, and all workers would inherit that

# The launcher tells workers the head's address; on the head Ray itself says which of its addresses is meant.
if [ -z "${RAY_HEAD_IP:-}" ]; then
  RAY_HEAD_IP="$(python -c 'import ray.util; print(ray.util.get_node_ip_address())')"
  export RAY_HEAD_IP
fi
# Jobs inherit both from the node their driver runs on.
export MLFLOW_TRACKING_URI="${MLFLOW_TRACKING_URI:-http://$RAY_HEAD_IP:5000}"
export SEGRAY_CONFIG="$SEGRAY_SHARED/segray.yaml"
