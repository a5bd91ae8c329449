#!/usr/bin/env bash
# N processes on this machine that form one run, talking over gloo: the code path of a pod, without a pod.
#
#   launch/local.sh N [--dry-run] --config=configs/debug.py --workdir=DIR [more flags of the trainer]
#
# DEVICES   CPU devices per process (default 1)
# MODULE    what runs (default vo3.train.sft)
# PYTHON    the interpreter (default .venv/bin/python of the checkout, else python3)
# PORT      of the coordinator (default: a free one)
#
# SIGTERM and SIGINT go to every process, which save and leave. The first failure ends the others; its code is ours.
#
# Assumes: bash 4.3 or later; vo3 is installed for PYTHON; the processes share --workdir.

set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

[[ "${1:-}" == -h || "${1:-}" == --help ]] && { usage; exit 0; }
COUNT="${1:-}"
[[ "$COUNT" =~ ^[1-9][0-9]*$ ]] || die "the first argument is the number of processes, not '$COUNT'; see --help"
shift
if [[ "${1:-}" == --dry-run ]]; then
  DRY_RUN=1
  shift
fi
has_workdir=0
for each in "$@"; do [[ "$each" == --workdir=?* ]] && has_workdir=1; done
((has_workdir)) || die "--workdir=DIR is missing; every process must have the same one"

if [[ -z "${PYTHON:-}" ]]; then
  PYTHON="$VO3_ROOT/.venv/bin/python"
  [[ -x "$PYTHON" ]] || PYTHON=python3
fi
MODULE="${MODULE:-vo3.train.sft}"
DEVICES="${DEVICES:-1}"
[[ "$DEVICES" =~ ^[1-9][0-9]*$ ]] || die "DEVICES=$DEVICES is no number above 0"
if [[ -z "${PORT:-}" ]]; then
  PORT="$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
fi

export JAX_PLATFORMS=cpu VO3_COORDINATOR="127.0.0.1:$PORT" VO3_PROCESSES="$COUNT"
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
export PYTHONPATH="$VO3_ROOT${PYTHONPATH:+:$PYTHONPATH}"

if [[ "$DRY_RUN" == 1 ]]; then
  assumptions
  for ((i = 0; i < COUNT; i++)); do
    run env "VO3_PROCESS=$i" "VO3_PROCESSES=$COUNT" "VO3_COORDINATOR=$VO3_COORDINATOR" "JAX_PLATFORMS=cpu" \
      "XLA_FLAGS=${XLA_FLAGS# }" "$PYTHON" -m "$MODULE" "$@"
  done
  exit 0
fi

PIDS=()
stop() { for pid in "${PIDS[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done; }
trap stop TERM INT

for ((i = 0; i < COUNT; i++)); do
  # The prefixers outlive a signal to the whole group (Ctrl-C, batch systems): else the processes would die of their next line.
  VO3_PROCESS=$i "$PYTHON" -m "$MODULE" "$@" > >(trap '' INT TERM && exec sed -u "s/^/[$i] /") 2> >(trap '' INT TERM && exec sed -u "s/^/[$i] /" >&2) &
  PIDS+=($!)
done

code=0
left=("${PIDS[@]}")
while ((${#left[@]})); do
  sleep 0.2 || true
  alive=()
  for pid in "${left[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      alive+=("$pid")
      continue
    fi
    status=0
    wait "$pid" || status=$?
    if ((status && !code)); then
      code=$status
      say "a process ended with code $status; ending the others"
      stop
    fi
  done
  left=("${alive[@]}")
done
exit "$code"
