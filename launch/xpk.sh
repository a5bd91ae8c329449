#!/usr/bin/env bash
# One run on a GKE cluster that xpk made: builds nothing, submits one workload.
#
#   launch/xpk.sh [--dry-run] [-- flags of the trainer]
#
# CLUSTER, PROJECT, ZONE   of xpk
# WORKLOAD   its name
# TPU_TYPE   v5p-32, v6e-64, v5litepod-256, ...
# CONFIG     configs/sft_stage1.py, ...
# WORKDIR    gs://...
# BASE_IMAGE or IMAGE   an image with vo3's packages on which xpk lays this checkout, or one that holds all
# NUM_SLICES=1, PRIORITY=medium, MAX_RESTARTS=100, MODULE=vo3.train.sft, COMPILATION_CACHE (default: WORKDIR/cache)
# GRACE=600   seconds to save after SIGTERM, longer than a checkpoint of the 7B takes (xpk's default is 30)
#
# A trainer that SIGTERM reached (drain, eviction, spot) saves and ends with code 75. xpk starts the workload again after that code,
# which --restart-on-exit-codes names, and after its own: 42 and 127 to 255, a kill and a crash of jax's runtime among them. Each
# time takes one of MAX_RESTARTS. Any other code, such as the 1 of a config that contradicts itself, ends the workload.
#
# Assumes: xpk 0.7 or later, kubectl and docker are installed and logged in; the cluster has TPU_TYPE; its service account may
# read rows and videos and write WORKDIR.

set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

FLAGS=()
while (($#)); do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry-run) DRY_RUN=1 ;;
    --) shift; FLAGS=("$@"); break ;;
    *) die "unknown argument $1; flags of the trainer follow --" ;;
  esac
  shift
done

need CLUSTER "the cluster that xpk made"
need PROJECT "the Google Cloud project"
need ZONE "the zone"
need WORKLOAD "a name for the workload"
need TPU_TYPE "the slice, e.g. v6e-64"
need CONFIG "the config file"
need WORKDIR "gs://... of the run"
[[ -n "${IMAGE:-}" ]] || need BASE_IMAGE "an image with vo3's packages (or IMAGE, one that holds all)"
check_needs
[[ "$WORKDIR" == gs://* ]] || die "WORKDIR=$WORKDIR must begin with gs://; a pod's disk is lost"
[[ -f "$VO3_ROOT/${CONFIG%%:*}" ]] || die "CONFIG=$CONFIG is no file of the checkout"
need_commands xpk kubectl

NUM_SLICES="${NUM_SLICES:-1}"
[[ "$NUM_SLICES" =~ ^[1-9][0-9]*$ ]] || die "NUM_SLICES=$NUM_SLICES is no number above 0"
SLICES=()
((NUM_SLICES > 1)) && SLICES=("--config.mesh.dcn_data=$NUM_SLICES")
MODULE="${MODULE:-vo3.train.sft}"
if [[ -n "${IMAGE:-}" ]]; then
  image=(--docker-image="$IMAGE")
else
  image=(--base-docker-image="$BASE_IMAGE" --script-dir="$VO3_ROOT")
fi

[[ "$DRY_RUN" == 1 ]] && assumptions
run xpk workload create --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" --workload="$WORKLOAD" --tpu-type="$TPU_TYPE" \
  --num-slices="$NUM_SLICES" --priority="${PRIORITY:-medium}" --max-restarts="${MAX_RESTARTS:-100}" \
  --restart-on-exit-codes=75 --termination-grace-period-seconds="${GRACE:-600}" "${image[@]}" \
  --env=VO3_PROCESSES=auto --env=VO3_STOPPED_CODE=75 --env="JAX_COMPILATION_CACHE_DIR=${COMPILATION_CACHE:-$WORKDIR/cache}" \
  --command="$(quote python -m "$MODULE" "--config=$CONFIG" "--workdir=$WORKDIR" "${SLICES[@]}" "${FLAGS[@]}")"
