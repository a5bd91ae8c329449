#!/usr/bin/env bash
# Sourced by the launchers: messages, required variables, dry runs. Sets nothing that a user would want to change.

VO3_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export VO3_ROOT
DRY_RUN="${DRY_RUN:-0}"

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() {
  say "$*"
  exit 2
}

# need NAME "what it is": ends the script, naming every variable that is missing, at the call of `check_needs`.
MISSING=()
need() {
  if [[ -z "${!1:-}" ]]; then MISSING+=("$1: $2"); fi
}
check_needs() {
  if ((${#MISSING[@]})); then
    say "these variables are not set:"
    printf '  %s\n' "${MISSING[@]}" >&2
    exit 2
  fi
}

# choice NAME a b c: the variable has one of these values.
choice() {
  local name="$1" value="${!1}" each
  shift
  for each in "$@"; do [[ "$value" == "$each" ]] && return; done
  die "$name=$value; one of: $*"
}

# The programs a script calls; a dry run calls none.
need_commands() {
  local name
  [[ "$DRY_RUN" == 1 ]] && return
  for name in "$@"; do
    command -v "$name" >/dev/null || die "the program $name is not installed"
  done
}

# run CMD...: prints the command in a form that can be pasted, and runs it unless this is a dry run.
run() {
  local each
  printf '+'
  for each in "$@"; do
    if [[ "$each" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then printf ' %s' "$each"; else printf ' %s' "${each@Q}"; fi
  done
  printf '\n'
  if [[ "$DRY_RUN" != 1 ]]; then "$@"; fi
}

# The lines "# Assumes:" to the first blank comment of a script, so that --help and --dry-run can show them.
assumptions() {
  sed -n '/^# Assumes:/,/^$/p' "$0" | sed 's/^# \{0,1\}//'
}

usage() {
  sed -n '2,/^$/p' "$0" | sed 's/^# \{0,1\}//'
}

# quote CMD...: one string that a remote shell splits back into the same words.
quote() {
  local each out=""
  for each in "$@"; do out+="$(printf '%q' "$each") "; done
  printf '%s' "${out% }"
}
