"""What the compiler made of a training step: memory, FLOPs and traffic of a device, and the time that peaks allow."""

from __future__ import annotations

import dataclasses

from vo3.train import hlo
from vo3.train.chips import GIB, Chip, Topology

# Assumed for the time of a whole step: tokens of an average trajectory (an overview of up to 16,384 and a clip or two), and the
# share of the matrix units' peak that large bf16 products reach.
TOKENS_PER_TRAJECTORY = 18_000
EFFICIENCY = 0.6


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Of a micro-batch: rows over all devices, tokens and vision patches of a row."""

    rows: int
    length: int
    patches: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What one device of the slice holds, does and sends in a micro-batch; bytes unless named otherwise.

    Attributes:
      topology, slices, mesh: where.
      shapes: of the micro-batch.
      params, optimizer, batch: arguments of the step: trained and frozen parameters, optimiser state, the micro-batch.
      gradients: of accumulation, where the step has several micro-batches.
      activations: the compiler's temporaries: activations, gradients, gathered weights, buffers of collectives.
      total: the program's peak.
      flops: of matrix products and attention, recomputation included.
      model_flops: 6 per weight and token, all devices.
      collectives: by kind, empty where the compiler left no text.
      square: buffers of L x L or L x V.
      unknown_loops: loops whose trips were not found; what they send counts once.
      micro_batches, trajectories: of an average step.
      compile_seconds: of this compilation.
    """

    topology: Topology
    slices: int
    mesh: dict[str, int]
    shapes: Shapes
    params: float
    optimizer: float
    batch: float
    gradients: float
    activations: float
    total: float
    flops: float
    model_flops: float
    collectives: tuple[hlo.Collective, ...]
    largest: tuple[tuple[float, str, str], ...]
    square: tuple[str, ...]
    unknown_loops: tuple[str, ...]
    micro_batches: int
    trajectories: int
    compile_seconds: float

    @property
    def chip(self) -> Chip:
        """The slice's chip."""
        return self.topology.chip

    @property
    def devices(self) -> int:
        """Chips of all slices."""
        return self.topology.chips * self.slices

    @property
    def fits(self) -> bool:
        """Whether the peak is within the memory a program may use."""
        return self.total <= self.chip.hbm_bytes

    def sent(self, *, between_slices: bool) -> float:
        """Bytes a device sends in a micro-batch, over ICI or between slices."""
        return sum(c.bytes for c in self.collectives if c.between_slices == between_slices)

    def seconds(self) -> dict[str, float]:
        """Predicted parts of a micro-batch's time."""
        return {
            "compute": self.flops / (self.chip.flops * EFFICIENCY),
            "ici": self.sent(between_slices=False) / self.chip.ici_bandwidth,
            "dcn": self.sent(between_slices=True) / self.chip.dcn_bandwidth,
        }


def render(report: Report) -> str:
    """The report as text."""
    chip, shapes = report.chip, report.shapes
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items() if size > 1) or "1"
    tokens = shapes.rows * shapes.length
    lines = [
        f"{report.topology.name} x {report.slices}: {report.devices} chips, mesh {mesh}; compiled in {report.compile_seconds:.0f} s",
        f"micro-batch: {shapes.rows} rows of {shapes.length:,} tokens and {shapes.patches:,} patches",
        "",
        "per device                       GiB",
    ]
    parts = {
        "parameters": report.params,
        "optimiser state": report.optimizer,
        "accumulated gradients": report.gradients,
        "batch": report.batch,
        "activations and temporaries": report.activations,
        "total": report.total,
        f"usable on {chip.name}": chip.hbm_bytes,
    }
    lines += [f"  {name:<28}{size / GIB:8.2f}" for name, size in parts.items()]
    if report.unknown_loops:
        lines += [f"loops counted once, their trips are unknown: {', '.join(report.unknown_loops)}"]
    lines += ["", "largest buffers"]
    lines += [
        f"  {size / GIB:8.2f} GiB  {shape}  {opcode}" for size, shape, opcode in report.largest
    ]
    lines += [f"L x L or L x V buffers: {', '.join(report.square) or 'none'}", ""]
    lines += [
        f"FLOPs per device and micro-batch: {report.flops:.3e} (recomputation and vision included)"
    ]
    if report.collectives:
        lines += ["sent per device and micro-batch"]
        lines += [
            f"  {c.kind:<20}{'between slices' if c.between_slices else 'ici':<16}{c.bytes / GIB:8.2f} GiB  {c.times:.0f} times"
            for c in report.collectives
        ]
    else:
        lines += ["sent per device: unknown, the compiler left no text"]
    seconds = report.seconds()
    most, total = max(seconds.values()), sum(seconds.values())
    mfu = report.model_flops / report.devices / chip.flops
    lines += [
        "",
        f"predicted time of a micro-batch: {most:.2f} s if communication hides behind compute, {total:.2f} s if none does",
        f"  compute {seconds['compute']:.2f} s, ici {seconds['ici']:.2f} s, between slices {seconds['dcn']:.2f} s",
        f"  {tokens / total:,.0f} to {tokens / most:,.0f} tokens/s, MFU {mfu / total:.0%} to {mfu / most:.0%} (6 FLOPs per decoder weight)",
        f"predicted step: {report.micro_batches} micro-batches, {report.micro_batches * most:.0f} to {report.micro_batches * total:.0f} s",
        "assumed: "
        f"{chip.flops / 1e12:.0f} TFLOP/s bf16 of which {EFFICIENCY:.0%} are reached, {chip.ici_bandwidth / 1e9:.0f} GB/s over all ICI links, "
        f"{chip.dcn_bandwidth / 1e9:.1f} GB/s per chip between slices;",
        f"  {report.trajectories} trajectories of {TOKENS_PER_TRAJECTORY:,} tokens a step; one trajectory a row (the dearest attention); data never waited for.",
        "",
        "fits" if report.fits else "does not fit",
    ]
    return "\n".join(lines)
