#!/usr/bin/env bash
# Sourced by tpu_vm.sh: `watch`, which looks at slice and run every POLL seconds until the run ends.
# Every look decides anew from what it sees, so that a refused call is made again at the next look.

# On the first worker: the run in one word, then its exit code or its last line. The code is asked for again at the end, as the
# trainer may leave it between the first two questions.
# shellcheck disable=SC2016  # the worker expands it
PROBE='if [ -s vo3.rc ]; then echo ended $(cat vo3.rc); elif [ ! -s vo3.pid ]; then echo nothing; elif kill -0 -- "-$(cat vo3.pid)" 2>/dev/null; then echo alive "$(tail -n 1 vo3.log)"; elif [ -s vo3.rc ]; then echo ended $(cat vo3.rc); else echo lost; fi'

# On a worker: ends what is left of a run that has failed or only half begun. Such a run has nothing to save.
# shellcheck disable=SC2016  # the worker expands it
CLEAR='group="$(cat vo3.pid 2>/dev/null)"; if [ -n "$group" ] && kill -TERM -- "-$group" 2>/dev/null; then for i in $(seq 60); do kill -0 -- "-$group" 2>/dev/null || break; sleep 1; done; kill -KILL -- "-$group" 2>/dev/null; fi; true'

ask_again() {
  if [[ "$NOW" == gone ]]; then down || return 1; fi
  create_request
}
start_again() { on_all "$CLEAR" && start; }
begin_again() { on_all "$CLEAR" && setup && start; }

# attempt CMD: one step of the way back to a running trainer. Gives up after RETRIES failures in a row.
attempt() {
  if "$1"; then
    refused=0
    return
  fi
  refused=$((refused + 1))
  ((refused > RETRIES)) && die "could not create, set up or start $refused times in a row, last: $1. $TPU_NAME is still there and paid for if it was created: '$0 down' deletes it, '$0 watch' goes on"
  say "$1 was refused ($refused of $RETRIES); again in $POLL s"
  return 1
}

# failed HOW: the run ended, and not well.
failed() {
  failures=$((failures + 1))
  alive=0
  on_first 'tail -n 20 vo3.log' >&2 || true
  ((failures > RETRIES)) && die "the run failed $failures times in a row, last $1. $TPU_NAME is still there and paid for: '$0 down' deletes it"
  say "the run failed $1; starting it again ($failures of $RETRIES)"
  attempt start_again || begun=0
}

# follow: one look at the run of a slice that is ready; returns 1 when the run has ended well.
follow() {
  local seen word rest
  seen="$(on_first "$PROBE" 2>/dev/null)" || seen=""
  read -r word rest <<<"$seen" || true
  case "$word" in
    alive)
      alive=$((alive + 1))
      if ((alive >= STEADY)); then failures=0; fi
      printf '%s\n' "$rest"
      ;;
    ended)
      if [[ "$rest" != 0 ]]; then
        failed "with code $rest"
        return
      fi
      # A preempted run saves and ends with 0 as well: only if the slice lives on is the run over.
      sleep "$POLL"
      look
      [[ "$NOW" != ready ]]
      ;;
    lost) failed "without an exit code: it was killed, or its machine started anew" ;;
    nothing) say "no run was started on $TPU_NAME: '$0 setup' and '$0 run' do that" ;;
    *) say "$TPU_NAME does not answer" ;;
  esac
}

watch() {
  # begun: whether a run was started on the slice that is there. A slice that this watch finds has one.
  local begun=1 failures=0 alive=0 refused=0
  if [[ "$DRY_RUN" == 1 ]]; then
    say "dry run: would look every $POLL s, and create, setup and run again after preemption"
    return
  fi
  while true; do
    sleep "$POLL"
    look
    case "$NOW" in
      unknown) ;;
      absent | gone)
        # Also a slice that failed before it was ready.
        say "$TPU_NAME is $NOW: resuming"
        begun=0 failures=0 alive=0
        attempt ask_again || true
        ;;
      ready)
        if ((begun)); then
          follow || break
        elif attempt begin_again; then
          begun=1
        fi
        ;;
      *) say "$TPU_NAME: $NOW" ;;
    esac
  done
  say "the run has ended; '$0 down' deletes the slice"
}
