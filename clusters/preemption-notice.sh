#!/usr/bin/env bash
# Drains this node when the cloud announces its preemption, so that training continues elsewhere:
#   preemption-notice.sh aws|gcp
#
# Ray does not detect a spot interruption. The cloud announces it only in the metadata service of the machine, 2 minutes
# in advance on AWS and 30 seconds on GCP. A drained node gets no new work; segray's workers on it write a checkpoint
# and restart on other nodes.
#
# The launcher starts this script on each worker node, with RAY_HEAD_IP set. METADATA_URL and METADATA_POLL_S are for
# tests.
set -u
cloud="$1"
head="$RAY_HEAD_IP:6379"
poll_s="${METADATA_POLL_S:-5}"

# One process per head, because `ray up` repeats the start commands. The lock is released when the process ends.
exec 9> "${TMPDIR:-/tmp}/preemption-notice-$(id -u)-${head//[^0-9A-Za-z.]/-}.lock"
flock --nonblock 9 || exit 0

get() { # prints the response; fails if there is none, or it is an error such as 404
  curl --silent --fail --max-time 2 "$@" 9>&-
}

# Print the remaining seconds; fail while there is no notice.
aws_notice() {
  local url="${METADATA_URL:-http://169.254.169.254}/latest" token notice time end
  token="$(get --request PUT --header 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$url/api/token")" || return 1
  # {"action": "terminate", "time": "2026-01-31T12:00:00Z"}; 404 before the notice
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

# The arguments of the raylet contain the id of the node and the address of its head. (Without --node-id,
# `ray drain-node` would start a driver to determine the id, which takes seconds.)
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
    echo "$(date): the machine ends in $left_s s; draining node ${node:-(no raylet is running)}"
    if [ -n "$node" ] && ray drain-node --address "$head" --node-id "$node" --reason DRAIN_NODE_REASON_PREEMPTION \
      --reason-message "$cloud preempts the machine" --deadline-remaining-seconds "$left_s" 9>&-; then
      exit 0
    fi
  fi
  sleep "$poll_s" 9>&- # then try again, also if the head did not respond
done
