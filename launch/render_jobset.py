"""Fills in launch/gke_jobset.yaml.

    python launch/render_jobset.py --name=stage1 --topology=v6e:8x8 --image=REGION-docker.pkg.dev/PROJECT/REPO/vo3 \
        --service-account=vo3 --config=configs/sft_stage1.py --workdir=gs://BUCKET/stage1 -- --config.mesh.tensor=2 \
        --config.model=gs://BUCKET/Qwen2.5-VL-7B-Instruct --config.data.rows=gs://BUCKET/seeker.jsonl --config.data.videos=gs://BUCKET/videos \
        | kubectl apply -f -

Assumes: a GKE cluster with the JobSet controller (and Kueue for --queue), a TPU node pool of that topology per slice, an image with vo3,
its extras tpu, data, train and gcs, and the configs in its working directory (launch/Dockerfile makes one), and a Kubernetes service account that may read the rows and
write WORKDIR. --dry-run prints the assumptions and the result, and contacts nothing; neither does a plain call.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
import string
import sys
from collections.abc import Sequence

TEMPLATE = pathlib.Path(__file__).with_name("gke_jobset.yaml")
# Name of the chip in topologies -> GKE's accelerator label, chips per host of slices with several hosts.
ACCELERATORS = {
    "v4": ("tpu-v4-podslice", 4),
    "v5e": ("tpu-v5-lite-podslice", 4),
    "v5p": ("tpu-v5p-slice", 4),
    "v6e": ("tpu-v6e-slice", 4),
    "tpu7x": ("tpu7x", 4),
}


class RenderError(ValueError):
    """An argument that cannot be rendered; the message names it and the remedy."""


def hosts_of(topology: str) -> tuple[str, str, int, int]:
    """GKE's accelerator label, its topology, hosts, and chips per host of `v5p:4x4x4`.

    Raises:
      RenderError: an unknown chip, or no topology.
    """
    chip, _, shape = topology.partition(":")
    if chip not in ACCELERATORS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise RenderError(
            f"--topology={topology}: CHIP:AxB[xC] is expected, with CHIP one of {', '.join(ACCELERATORS)}"
        )
    label, per_host = ACCELERATORS[chip]
    chips = math.prod(map(int, shape.split("x")))
    if chips < per_host:
        return label, shape, 1, chips
    # A single host of v5e or v6e holds up to 8 chips.
    if chip in ("v5e", "v6e") and chips == 8:
        return label, shape, 1, 8
    if chips % per_host:
        raise RenderError(
            f"--topology={topology}: {chips} chips are no multiple of {per_host} per host"
        )
    return label, shape, chips // per_host, per_host


def render(
    *,
    name: str,
    topology: str,
    image: str,
    service_account: str,
    command: Sequence[str],
    cache: str,
    slices: int = 1,
    namespace: str = "default",
    queue: str = "",
    restarts: int = 100,
    grace: int = 600,
) -> str:
    """The manifest as text.

    Raises:
      RenderError: an empty value, a bad name or topology, or a placeholder of the template that nothing fills.
    """
    values = {"name": name, "image": image, "service_account": service_account, "cache": cache}
    empty = [key for key, value in values.items() if not value]
    if empty:
        raise RenderError(f"{', '.join(empty)}: empty; give a value")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise RenderError(
            f"--name={name}: up to 40 lower-case letters, digits and dashes, a letter first"
        )
    if slices < 1:
        raise RenderError(f"--slices={slices} is below 1")
    accelerator, shape, hosts, chips = hosts_of(topology)
    # JSON strings are YAML strings, and no character of a value can leave them.
    quoted = {key: json.dumps(value) for key, value in values.items() if key != "name"}
    text = TEMPLATE.read_text(encoding="utf-8")
    if not queue:
        text = re.sub(r"  labels:\n.*queue-name.*\n", "", text)
    try:
        return string.Template(text).substitute(
            quoted,
            name=name,
            namespace=json.dumps(namespace),
            queue=json.dumps(queue),
            restarts=restarts,
            grace=grace,
            slices=slices,
            hosts=hosts,
            accelerator=accelerator,
            topology=json.dumps(shape),
            chips_per_host=chips,
            command=json.dumps(list(command)),
        )
    except KeyError as error:
        raise RenderError(
            f"{TEMPLATE.name} has a placeholder {error} that nothing fills"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the manifest; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True)
    parser.add_argument("--topology", required=True, help="v5p:2x2x4, v6e:8x8, v5e:16x16, ...")
    parser.add_argument("--image", required=True)
    parser.add_argument("--service-account", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, help="gs://...")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--queue", default="", help="of Kueue; default: none")
    parser.add_argument("--cache", default="", help="compilation cache, default: WORKDIR/cache")
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--grace", type=int, default=600, help="seconds to save after SIGTERM")
    parser.add_argument("--module", default="vo3.train.sft")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("flags", nargs="*", help="flags of the trainer, after --")
    args = parser.parse_args(argv)
    command = ["python", "-m", args.module, f"--config={args.config}", f"--workdir={args.workdir}"]
    if args.slices > 1:
        command.append(f"--config.mesh.dcn_data={args.slices}")
    try:
        if not args.workdir.startswith("gs://"):
            raise RenderError(
                f"--workdir={args.workdir} must begin with gs://; a pod's disk is lost"
            )
        text = render(
            name=args.name,
            topology=args.topology,
            image=args.image,
            service_account=args.service_account,
            command=[*command, *args.flags],
            cache=args.cache or f"{args.workdir.rstrip('/')}/cache",
            slices=args.slices,
            namespace=args.namespace,
            queue=args.queue,
            restarts=args.restarts,
            grace=args.grace,
        )
    except RenderError as error:
        print(f"render_jobset: {error}", file=sys.stderr)
        return 2
    if args.dry_run:
        print(__doc__.partition("Assumes: ")[2].strip(), file=sys.stderr)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
