#!/usr/bin/env bash
# One run on Cloud TPU VMs: from nothing to a resumed run after preemption, to nothing again.
#
#   launch/tpu_vm.sh ACTION [--dry-run] [-- flags of the trainer]
#
#   create   create the slice, or keep the one that is there; waits until it is ready
#   setup    put this commit on every worker and install it
#   run      start the trainer on every worker, in the background; it goes on from the newest checkpoint in WORKDIR
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
# MODULE=vo3.train.sft, EXTRAS=tpu,data,train,gcs, POLL=60 (seconds), RETRIES=3 (failures in a row before watch gives up)
#
# Assumes: gcloud is installed and logged in, with rights on TPUs in PROJECT; the TPU's service account may read rows and
# videos and write WORKDIR; workers reach PyPI and GitHub (uv fetches Python 3.12,
# the runtimes' own is older); what is committed is what runs.

set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

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

# The slice in one word: absent, waiting, ready, gone (preempted or failed).
state() {
  local raw
  if [[ "$QUEUED" == 1 ]]; then
    raw="$("${TPUS[@]}" queued-resources describe "$TPU_NAME" "${PLACE[@]}" --format='value(state.state)' 2>/dev/null || true)"
  else
    raw="$("${TPUS[@]}" tpu-vm describe "$TPU_NAME" "${PLACE[@]}" --format='value(state)' 2>/dev/null || true)"
  fi
  case "$raw" in
    "") echo absent ;;
    ACTIVE | READY) echo ready ;;
    SUSPENDING | SUSPENDED | FAILED | PREEMPTED | TERMINATED | STOPPED | DELETING) echo gone ;;
    *) echo waiting ;;
  esac
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
  local now
  if [[ "$DRY_RUN" == 1 ]]; then
    create_request
    return
  fi
  now="$(state)"
  if [[ "$now" == gone ]]; then
    say "$TPU_NAME was preempted or failed; deleting what is left"
    down
    now=absent
  fi
  [[ "$now" == absent ]] && create_request
  while now="$(state)" && [[ "$now" != ready ]]; do
    [[ "$now" == gone ]] && die "$TPU_NAME failed before it was ready; see: gcloud compute tpus queued-resources describe $TPU_NAME"
    say "$TPU_NAME: $now"
    sleep "$POLL"
  done
  say "$TPU_NAME is ready"
}

# on_all CMD: a shell command on every worker of every slice.
on_all() {
  local node
  for node in "${NODES[@]}"; do
    run "${TPUS[@]}" tpu-vm ssh "$node" "${PLACE[@]}" --worker=all --command="$1"
  done
}

setup() {
  local node archive=/tmp/vo3-$TPU_NAME.tar.gz
  if [[ -n "$(git -C "$VO3_ROOT" status --porcelain --untracked-files=no)" ]]; then
    say "the checkout has changes that are not committed; they will not run"
  fi
  run git -C "$VO3_ROOT" archive --format=tar.gz --output="$archive" HEAD
  for node in "${NODES[@]}"; do
    run "${TPUS[@]}" tpu-vm scp "$archive" "$node:vo3.tar.gz" "${PLACE[@]}" --worker=all
  done
  on_all "set -e; rm -rf vo3-src; mkdir vo3-src; tar -xzf vo3.tar.gz -C vo3-src; python3 -m pip install -q --user uv; [ -d vo3-venv ] || ~/.local/bin/uv venv -q --python 3.12 vo3-venv; ~/.local/bin/uv pip install -q --python vo3-venv/bin/python -e 'vo3-src[$EXTRAS]'"
}

start() {
  local command
  command="$(quote env VO3_PROCESSES=auto "JAX_COMPILATION_CACHE_DIR=$COMPILATION_CACHE" ../vo3-venv/bin/python -m "$MODULE" \
    "--config=$CONFIG" "--workdir=$WORKDIR" "${SLICES[@]}" "${FLAGS[@]}")"
  # The exit code is left in a file: what started it is gone by then.
  on_all "cd vo3-src && rm -f ../vo3.rc && (setsid bash -c $(quote "trap : TERM; $command >../vo3.log 2>&1; echo \$? >../vo3.rc") </dev/null >/dev/null 2>&1 & echo \$! >../vo3.pid)"
}

on_first() {
  "${TPUS[@]}" tpu-vm ssh "${NODES[0]}" "${PLACE[@]}" --worker=0 --command="$1"
}

watch() {
  local now code failures=0
  if [[ "$DRY_RUN" == 1 ]]; then
    say "dry run: would look every $POLL s, and create, setup and run again after preemption"
    return
  fi
  while true; do
    sleep "$POLL"
    now="$(state)"
    if [[ "$now" == absent || "$now" == gone ]]; then
      say "$TPU_NAME is $now: resuming"
      create
      setup
      start
      continue
    fi
    [[ "$now" == ready ]] || continue
    code="$(on_first 'cat vo3.rc 2>/dev/null || true' 2>/dev/null || echo unreachable)"
    case "$code" in
      "") on_first 'tail -n 1 vo3.log' || true ;;
      unreachable) say "$TPU_NAME does not answer" ;;
      0)
        # A preempted run saves and ends with 0 as well: only if the slice lives on is the run over.
        sleep "$POLL"
        if [[ "$(state)" == ready ]]; then
          say "the run has ended; '$0 down' deletes the slice"
          return
        fi
        ;;
      *)
        failures=$((failures + 1))
        on_first 'tail -n 20 vo3.log' >&2 || true
        ((failures > RETRIES)) && die "the run failed $failures times, last with code $code"
        say "the run failed with code $code; starting it again ($failures of $RETRIES)"
        start
        ;;
    esac
  done
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
      say "$TPU_NAME: $(state)"
      # shellcheck disable=SC2016  # the worker expands it
      on_first 'if [ -f vo3.rc ]; then echo ended with code $(cat vo3.rc); else tail -n 1 vo3.log; fi'
    else
      run "${TPUS[@]}" tpu-vm describe "${NODES[0]}" "${PLACE[@]}"
    fi
    ;;
  logs) run "${TPUS[@]}" tpu-vm ssh "${NODES[0]}" "${PLACE[@]}" --worker=0 --command='tail -n 100 -F vo3.log' ;;
  stop) on_all "kill -TERM -- -\$(cat vo3.pid)" ;;
  down) down ;;
esac
