#!/usr/bin/env bash
# Tells Ray that this machine will be taken away, so that training goes on elsewhere: preemption-notice.sh aws|gcp
#
# Ray does not hear of a spot interruption by itself: the cloud announces it at the machine's metadata service alone,
# 2 minutes ahead on AWS and 30 seconds on GCP. A drained node gets no new work, and segray's workers on it write a
# checkpoint and are started elsewhere.
#
# The launcher starts this beside Ray on each worker, with RAY_HEAD_IP set. METADATA_URL and METADATA_POLL_S are for
# tests.
set -u
cloud="$1"
head="$RAY_HEAD_IP:6379"
poll_s="${METADATA_POLL_S:-5}"

# One of these per head: `ray up` runs the start commands again. The lock ends with the process that holds it.
exec 9> "${TMPDIR:-/tmp}/preemption-notice-$(id -u)-${head//[^0-9A-Za-z.]/-}.lock"
flock --nonblock 9 || exit 0

get() { # prints what is there; fails where nothing is (404), or nobody answers
  curl --silent --fail --max-time 2 "$@" 9>&-
}

# Print the seconds that are left; fail while there is no notice.
aws_notice() {
  local url="${METADATA_URL:-http://169.254.169.254}/latest" token notice time end
  token="$(get --request PUT --header 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$url/api/token")" || return 1
  # {"action": "terminate", "time": "2026-01-31T12:00:00Z"}, there from the notice on
  notice="$(get --header "X-aws-ec2-metadata-token: $token" "$url/meta-data/spot/instance-action")" || return 1
  time="$(sed -n 's/.*"time" *: *"\([^"]*\)".*/\1/p' <<< "$notice")"
  end="$(date --date "${time:-+120 seconds}" +%s)" || return 1
  echo "$((end - $(date +%s)))"
}

gcp_notice() {
  local url="${METADATA_URL:-http://metadata.google.internal}/computeMetadata/v1/instance/preempted"
  [ "$(get --header 'Metadata-Flavor: Google' "$url")" = TRUE ] || return 1
  echo 30
}

# A node's id stands in the arguments of its raylet, which also name the head it belongs to. (Without --node-id,
# `ray drain-node` would start a driver to ask; these seconds are dear.)
node_id() {
  ps -ww -eo args= 9>&- | awk -v gcs="--gcs-address=$head" '
    $1 ~ /raylet$/ && index($0, gcs) && match($0, /--node_id=[0-9a-f]+/) {
      print substr($0, RSTART + 10, RLENGTH - 10)
      exit
    }'
}

while true; do
  if left_s="$("${cloud}_notice")"; then
    [ "$left_s" -gt 0 ] || left_s=0
    node="$(node_id)"
    echo "$(date): this machine is taken away in $left_s s; draining node ${node:-(none is running)}"
    if [ -n "$node" ] && ray drain-node --address "$head" --node-id "$node" --reason DRAIN_NODE_REASON_PREEMPTION \
      --reason-message "$cloud takes the machine away" --deadline-remaining-seconds "$left_s" 9>&-; then
      exit 0
    fi
  fi
  sleep "$poll_s" 9>&- # and again, also where the head did not answer
done
