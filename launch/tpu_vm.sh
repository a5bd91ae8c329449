#!/usr/bin/env bash
# One run on Cloud TPU VMs: from nothing to a resumed run after preemption, to nothing again.
#
#   launch/tpu_vm.sh ACTION [--dry-run] [-- flags of the trainer]
#
#   create   create the slice, or keep the one that is there; waits until it is ready
#   setup    put this commit on every worker and install it; refused while a trainer runs there
#   run      start the trainer on every worker, in the background; it goes on from the newest checkpoint in WORKDIR.
#            A trainer that runs already is kept and named, and no second one is started
#   up       create, setup, run, then watch
#   watch    until the run ends: report, and after preemption create, setup and run again
#   status   state of the slice, exit code or last line of the run
#   logs     follow worker 0
#   stop     SIGTERM to the trainer: it saves and leaves
#   down     delete the slice
#
# PROJECT, ZONE   of Google Cloud
# TPU_NAME        of the slice
# TPU_TYPE        v5p-32, v6e-64, v5litepod-256, ...
# CONFIG          configs/sft_stage1.py, ...               (run, up, watch)
# WORKDIR         gs://...: checkpoints and logs           (run, up, watch)
# NUM_SLICES=1    more than one: multislice; becomes --config.mesh.dcn_data
# SPOT=1          preemptible capacity (0: on demand)
# QUEUED=1        by queued resources (0: directly)
# RUNTIME         software version (default: by TPU_TYPE)
# NETWORK, SUBNETWORK, SERVICE_ACCOUNT   passed on when set
# COMPILATION_CACHE   gs://... kept between runs (default: WORKDIR/cache)
# MODULE=vo3.train.sft, EXTRAS=tpu,data,train,gcs, POLL=60 (seconds between two looks)
# RETRIES=3       so many failures in a row are tried again, of the run and, apart from it, of creating, setting up and starting
# STEADY=30       looks in a row that see the run alive and end a row of its failures; a preemption ends it too
#
# Assumes: gcloud is installed and logged in, with rights on TPUs in PROJECT; the TPU's service account may read rows and
# videos and write WORKDIR; workers reach PyPI and GitHub (uv fetches Python 3.12,
# the runtimes' own is older); what is committed is what runs.

set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# shellcheck source=launch/tpu_watch.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu_watch.sh"

ACTION="${1:-}"
[[ "$ACTION" == -h || "$ACTION" == --help ]] && { usage; exit 0; }
[[ -n "$ACTION" ]] || die "an action is missing; see --help"
shift
FLAGS=()
while (($#)); do
  case "$1" in
    --dry-run) DRY_RUN=1 ;;
    --) shift; FLAGS=("$@"); break ;;
    *) die "unknown argument $1; flags of the trainer follow --" ;;
  esac
  shift
done

NUM_SLICES="${NUM_SLICES:-1}"
SPOT="${SPOT:-1}"
QUEUED="${QUEUED:-1}"
MODULE="${MODULE:-vo3.train.sft}"
EXTRAS="${EXTRAS:-tpu,data,train,gcs}"
POLL="${POLL:-60}"
RETRIES="${RETRIES:-3}"
STEADY="${STEADY:-30}"

need PROJECT "the Google Cloud project"
need ZONE "the zone, e.g. us-east5-a"
need TPU_NAME "a name for the slice"
case "$ACTION" in
  create) need TPU_TYPE "the slice, e.g. v5p-32" ;;
  run) need CONFIG "the config file" ; need WORKDIR "gs://... of the run" ;;
  up | watch)
    need TPU_TYPE "the slice, e.g. v5p-32"
    need CONFIG "the config file"
    need WORKDIR "gs://... of the run"
    ;;
  setup | status | logs | stop | down) ;;
  *) die "unknown action $ACTION; see --help" ;;
esac
check_needs
choice SPOT 0 1
choice QUEUED 0 1
[[ "$NUM_SLICES" =~ ^[1-9][0-9]*$ ]] || die "NUM_SLICES=$NUM_SLICES is no number above 0"
if ((NUM_SLICES > 1)) && [[ "$QUEUED" == 0 ]]; then
  die "NUM_SLICES=$NUM_SLICES needs QUEUED=1: only queued resources create slices together"
fi
if [[ -n "${WORKDIR:-}" && "$WORKDIR" != gs://* ]]; then
  die "WORKDIR=$WORKDIR must begin with gs://; every worker writes its part of a checkpoint there"
fi
if [[ -n "${CONFIG:-}" && ! -f "$VO3_ROOT/${CONFIG%%:*}" ]]; then
  die "CONFIG=$CONFIG is no file of the checkout"
fi
need_commands gcloud git

if [[ -n "${TPU_TYPE:-}" && -z "${RUNTIME:-}" ]]; then
  case "$TPU_TYPE" in
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
    v4-*) RUNTIME=tpu-ubuntu2204-base ;;
    *) die "no software version is known for TPU_TYPE=$TPU_TYPE; set RUNTIME" ;;
  esac
fi
COMPILATION_CACHE="${COMPILATION_CACHE:-${WORKDIR:+$WORKDIR/cache}}"

PLACE=(--project="$PROJECT" --zone="$ZONE")
TPUS=(gcloud compute tpus)
if ((NUM_SLICES > 1)); then
  NODES=()
  for ((i = 0; i < NUM_SLICES; i++)); do NODES+=("$TPU_NAME-$i"); done
  SLICES=("--config.mesh.dcn_data=$NUM_SLICES")
else
  NODES=("$TPU_NAME")
  SLICES=()
fi

ERRORS="$(mktemp)"
trap 'rm -f "$ERRORS"' EXIT
UNKNOWN=0

# look: puts the slice into one word, NOW: absent, waiting, ready, leaving (being taken away), gone (preempted or failed), unknown.
# Only NOT_FOUND means absent. Any other error of gcloud (a 503, a login that ended) says nothing of the slice, and taken for
# absent it would start a second run beside the first.
look() {
  local what=(tpu-vm describe) format='value(state)' raw
  [[ "$QUEUED" == 1 ]] && what=(queued-resources describe) format='value(state.state)'
  NOW=unknown
  if raw="$("${TPUS[@]}" "${what[@]}" "$TPU_NAME" "${PLACE[@]}" --format="$format" 2>"$ERRORS")"; then
    case "$raw" in
      "") echo "gcloud printed no state" >>"$ERRORS" ;;
      ACTIVE | READY) NOW=ready ;;
      SUSPENDING | DELETING) NOW=leaving ;;
      SUSPENDED | FAILED | PREEMPTED | TERMINATED | STOPPED) NOW=gone ;;
      *) NOW=waiting ;;
    esac
  elif grep -q NOT_FOUND "$ERRORS"; then
    NOW=absent
  fi
  if [[ "$NOW" != unknown ]]; then
    UNKNOWN=0
    return
  fi
  UNKNOWN=$((UNKNOWN + 1))
  ((UNKNOWN > 1)) || say "$TPU_NAME: its state is unknown: $(cat "$ERRORS")"
}

create_request() {
  local args
  if [[ "$QUEUED" == 1 ]]; then
    args=(queued-resources create "$TPU_NAME" "${PLACE[@]}" --accelerator-type="$TPU_TYPE" --runtime-version="$RUNTIME")
    if ((NUM_SLICES > 1)); then
      args+=(--node-count="$NUM_SLICES" --node-prefix="$TPU_NAME")
    else
      args+=(--node-id="$TPU_NAME")
    fi
  else
    args=(tpu-vm create "$TPU_NAME" "${PLACE[@]}" --accelerator-type="$TPU_TYPE" --version="$RUNTIME")
  fi
  [[ "$SPOT" == 1 ]] && args+=(--spot)
  [[ -n "${NETWORK:-}" ]] && args+=(--network="$NETWORK")
  [[ -n "${SUBNETWORK:-}" ]] && args+=(--subnetwork="$SUBNETWORK")
  [[ -n "${SERVICE_ACCOUNT:-}" ]] && args+=(--service-account="$SERVICE_ACCOUNT")
  run "${TPUS[@]}" "${args[@]}"
}

down() {
  if [[ "$QUEUED" == 1 ]]; then
    run "${TPUS[@]}" queued-resources delete "$TPU_NAME" "${PLACE[@]}" --force --quiet
  else
    run "${TPUS[@]}" tpu-vm delete "$TPU_NAME" "${PLACE[@]}" --quiet
  fi
}

create() {
  if [[ "$DRY_RUN" == 1 ]]; then
    create_request
    return
  fi
  while look && [[ "$NOW" == unknown || "$NOW" == leaving ]]; do
    ((UNKNOWN > RETRIES)) && die "$TPU_NAME: gcloud does not say whether it exists, so nothing was created: $(cat "$ERRORS")"
    sleep "$POLL"
  done
  if [[ "$NOW" == gone ]]; then
    say "$TPU_NAME was preempted or failed; deleting what is left"
    down
    NOW=absent
  fi
  [[ "$NOW" == absent ]] && create_request
  while look && [[ "$NOW" != ready ]]; do
    [[ "$NOW" == gone ]] && die "$TPU_NAME failed before it was ready; see: gcloud compute tpus queued-resources describe $TPU_NAME"
    [[ "$NOW" == unknown ]] || say "$TPU_NAME: $NOW"
    sleep "$POLL"
  done
  say "$TPU_NAME is ready"
}

# From here to `start`, a failure is returned at once: `watch` tries again, where bash does not heed set -e.

# on_all CMD: a shell command on every worker of every slice.
on_all() {
  local node
  for node in "${NODES[@]}"; do
    run "${TPUS[@]}" tpu-vm ssh "$node" "${PLACE[@]}" --worker=all --command="$1" || return 1
  done
}

# On a worker: ends the command where a trainer runs. It is never doubled, nor its code deleted under it.
# One that has left its exit code is over, whatever of its group remains.
# shellcheck disable=SC2016  # the worker expands it
REFUSE='if [ ! -s vo3.rc ] && [ -s vo3.pid ] && kill -0 -- "-$(cat vo3.pid)" 2>/dev/null; then echo "$(hostname): a trainer runs here, process group $(cat vo3.pid); it is kept" >&2; exit 3; fi'

setup() {
  local node archive=/tmp/vo3-$TPU_NAME.tar.gz
  if [[ -n "$(git -C "$VO3_ROOT" status --porcelain --untracked-files=no)" ]]; then
    say "the checkout has changes that are not committed; they will not run"
  fi
  run git -C "$VO3_ROOT" archive --format=tar.gz --output="$archive" HEAD || return 1
  for node in "${NODES[@]}"; do
    run "${TPUS[@]}" tpu-vm scp "$archive" "$node:vo3.tar.gz" "${PLACE[@]}" --worker=all || return 1
  done
  on_all "set -e; $REFUSE; rm -rf vo3-src; mkdir vo3-src; tar -xzf vo3.tar.gz -C vo3-src; python3 -m pip install -q --user uv; [ -d vo3-venv ] || ~/.local/bin/uv venv -q --python 3.12 vo3-venv; ~/.local/bin/uv pip install -q --python vo3-venv/bin/python -e 'vo3-src[$EXTRAS]'" && return
  say "$TPU_NAME is not set up; its workers say why. A run that goes on there: '$0 watch' follows it, '$0 stop' ends it"
  return 1
}

start() {
  local command
  command="$(quote env VO3_PROCESSES=auto "JAX_COMPILATION_CACHE_DIR=$COMPILATION_CACHE" ../vo3-venv/bin/python -m "$MODULE" \
    "--config=$CONFIG" "--workdir=$WORKDIR" "${SLICES[@]}" "${FLAGS[@]}")"
  # Every worker is asked before the first one starts: half of a run would wait for the other half.
  if ! on_all "$REFUSE"; then
    say "nothing was started; the workers say why. A run that goes on there: '$0 watch' follows it, '$0 stop' ends it"
    return 1
  fi
  # The exit code is left in a file: what started it is gone by then.
  on_all "$REFUSE; cd vo3-src && rm -f ../vo3.rc && (setsid bash -c $(quote "trap : TERM; $command >../vo3.log 2>&1; echo \$? >../vo3.rc") </dev/null >/dev/null 2>&1 & echo \$! >../vo3.pid)"
}

# Every slice is told, whatever another one says; a worker whose trainer has ended is no failure.
stop() {
  local node failed=()
  for node in "${NODES[@]}"; do
    # shellcheck disable=SC2016  # the worker expands it
    run "${TPUS[@]}" tpu-vm ssh "$node" "${PLACE[@]}" --worker=all \
      --command='if kill -TERM -- "-$(cat vo3.pid)"; then echo "$(hostname): told to stop"; elif ! kill -0 -- "-$(cat vo3.pid)" 2>/dev/null; then echo "$(hostname): no trainer runs"; else exit 1; fi' ||
      failed+=("$node")
  done
  ((${#failed[@]} == 0)) && return
  say "not stopped: ${failed[*]}; their workers say why. '$0 stop' tries again"
  return 1
}

on_first() {
  "${TPUS[@]}" tpu-vm ssh "${NODES[0]}" "${PLACE[@]}" --worker=0 --command="$1"
}

[[ "$DRY_RUN" == 1 ]] && assumptions
case "$ACTION" in
  create) create ;;
  setup) setup ;;
  run) start ;;
  up)
    create
    setup
    start
    watch
    ;;
  watch) watch ;;
  status)
    if [[ "$DRY_RUN" != 1 ]]; then
      look
      say "$TPU_NAME: $NOW"
      # shellcheck disable=SC2016  # the worker expands it
      on_first 'if [ -f vo3.rc ]; then echo ended with code $(cat vo3.rc); else tail -n 1 vo3.log; fi'
    else
      run "${TPUS[@]}" tpu-vm describe "${NODES[0]}" "${PLACE[@]}"
    fi
    ;;
  logs) run "${TPUS[@]}" tpu-vm ssh "${NODES[0]}" "${PLACE[@]}" --worker=0 --command='tail -n 100 -F vo3.log' ;;
  stop) stop ;;
  down) down ;;
esac
