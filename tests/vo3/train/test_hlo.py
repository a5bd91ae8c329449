"""Reading compiled programs: on text as the TPU compiler writes it, and on programs compiled here."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vo3.train import hlo

# As the TPU compiler writes it: operands without shapes, a counter in the carry, asynchronous pairs.
TEXT = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (u32[], bf16[8,4])) -> (u32[], bf16[8,4]) {
  %p = (u32[]{:T(128)}, bf16[8,4]{1,0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %copied = u32[]{:T(128)} copy(%i)
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%copied, %two)
  %x = bf16[8,4]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %start = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %moved = bf16[8,4]{1,0} collective-permute-done(%start)
  ROOT %out = (u32[]{:T(128)}, bf16[8,4]{1,0}) tuple(%next, %moved)
}

%condition (p.1: (u32[], bf16[8,4])) -> pred[] {
  %p.1 = (u32[]{:T(128)}, bf16[8,4]{1,0}) parameter(0)
  %i.1 = u32[]{:T(128)} get-tuple-element(%p.1), index=0
  %bound = u32[]{:T(128)} constant(7)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

ENTRY %main (a: bf16[8,4], b: f32[16]) -> (bf16[32,4], f32[4]) {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = f32[16]{0} parameter(1)
  %one = u32[]{:T(128)} constant(1)
  %begin = (u32[]{:T(128)}, bf16[8,4]{1,0}) tuple(%one, %a)
  %loop = (u32[]{:T(128)}, bf16[8,4]{1,0}) while(%begin), condition=%condition, body=%body
  %last = bf16[8,4]{1,0} get-tuple-element(%loop), index=1
  %gather = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(%last), channel_id=2, replica_groups=mesh['axis_0'=4] {'axis_0'}, dimensions={0}
  %whole = bf16[32,4]{1,0} all-gather-done(%gather)
  %total = f32[16]{0} all-reduce(%b), channel_id=3, replica_groups=[2,2]<=[4], to_apply=%add
  %part = f32[4]{0} reduce-scatter(%b), channel_id=4, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  ROOT %result = (bf16[32,4]{1,0}, f32[4]{0}) tuple(%whole, %part)
}
"""


def by_kind(program, **options):
    return {(c.kind, c.between_slices): c for c in hlo.collectives(program, devices=4, **options)}


def test_bytes_are_those_of_the_ring_by_hand():
    program = hlo.parse(TEXT)
    assert program.unknown_loops == ()
    # From 1 below 7 by twos: three turns.
    assert program.counts["body"] == 3
    found = by_kind(program)
    assert found["collective-permute", False].times == 3
    assert found["collective-permute", False].bytes == 3 * 8 * 4 * 2
    assert found["all-gather", False].bytes == 32 * 4 * 2 * 3 / 4
    assert found["all-reduce", False].bytes == 2 * 16 * 4 / 2
    assert found["reduce-scatter", False].bytes == 4 * 4 * 4 * 3 / 4
    assert set(found) == {
        (k, False) for k in ("collective-permute", "all-gather", "all-reduce", "reduce-scatter")
    }


def test_elements_of_tuples_and_attributes_over_several_lines_as_newer_compilers_write_them():
    newer = re.sub(r"\n  %i.1 = .*", "", TEXT).replace("compare(%i.1,", "compare(%p.1#0,")
    before = "  ROOT %result"
    assert before in newer
    broken = '  %kernel = f32[] custom-call(%b), frontend_attributes={"a":\n"{}"\n}}, metadata={}\n'
    newer = newer.replace(before, broken + before)
    program = hlo.parse(newer)
    assert program.unknown_loops == () and program.counts["body"] == 3
    assert by_kind(program) == by_kind(hlo.parse(TEXT))
    assert [i.name for i in program.computations["main"]][-2:] == ["kernel", "result"]


def test_what_crosses_slices_is_told_apart():
    found = by_kind(hlo.parse(TEXT), slices=2)
    # Pairs (0, 1), (2, 3) stay inside; rings and gathers over all four do not.
    assert ("all-reduce", False) in found
    assert {kind for kind, between in found if between} == {
        "collective-permute",
        "all-gather",
        "reduce-scatter",
    }


SEND = (
    "  %send = (f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}, token[]) send(%b, %t), channel_id=2, is_host_transfer=true, "
    'frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="KIND"}\n'
)


@pytest.mark.parametrize(
    ("written", "kind", "share"),
    [("ALL_REDUCE", "all-reduce", 2 / 2), ("ALL_GATHER", "all-gather", 2 / 2),
     ("REDUCE_SCATTER", "reduce-scatter", 1 / 2), ("ONE_TO_ONE", "collective-permute", 1)],
)  # fmt: skip
def test_collectives_between_slices_go_through_the_hosts(written, kind, share):
    """The TPU compiler writes them as sends and receives; a pair counts once."""
    line = SEND.replace("KIND", written)
    pair = line + line.replace("%send", "%recv").replace(" send(", " recv(")
    found = by_kind(hlo.parse(TEXT.replace("  ROOT %result", f"{pair}  ROOT %result")), slices=2)
    before = by_kind(hlo.parse(TEXT), slices=2).get((kind, True))
    added = found[kind, True].bytes - (before.bytes if before else 0)
    assert added == 8 * 128 * 4 * share


def test_a_reduction_that_keeps_a_slice_is_a_scatter():
    fused = TEXT.replace("%body", "%all-reduce-scatter.1").replace(
        "collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}",
        "all-reduce-start(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add",
    )
    assert by_kind(hlo.parse(fused))["reduce-scatter", False].times == 3 + 1


def test_a_loop_that_cannot_be_counted_is_named():
    program = hlo.parse(
        TEXT.replace("%bound = u32[]{:T(128)} constant(7)", "%bound = u32[]{:T(128)} negate(%i.1)")
    )
    assert program.unknown_loops == ("loop",)
    assert program.counts["body"] == 1


def test_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("nothing of the kind\n")


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [(0, 2), (1, 3)]),
        ("replica_groups=[2,2]<=[4], x", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [(0, 1), (2, 3)]),
        ("replica_groups={}, x", [(0, 1, 2, 3)]),
        ("source_target_pairs={{0,1},{3,0}}, x", [(0, 1), (3, 0)]),
    ],
)
def test_groups(text, groups):
    assert hlo.replica_groups(text, 4) == groups


def compiled(function, *arguments):
    return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def test_a_gather_inside_a_scan_is_counted_per_turn():
    """What XLA makes here: 8 devices, 5 turns, [64, 16] f32 gathered in each."""
    mesh = Mesh(np.array(jax.devices()), ("x",))
    split = NamedSharding(mesh, PartitionSpec("x"))
    whole = NamedSharding(mesh, PartitionSpec())

    def turns(w):
        def turn(carry, _):
            full = jax.lax.with_sharding_constraint(carry * 2, whole)
            return jax.lax.with_sharding_constraint(jnp.sin(full), split), None

        return jax.lax.scan(turn, w, None, length=5)[0]

    program = compiled(turns, jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=split))
    gathers = [c for c in hlo.collectives(program, devices=8) if c.kind == "all-gather"]
    assert [(c.times, c.bytes) for c in gathers] == [(5, 5 * 64 * 16 * 4 * 7 / 8)]


def test_square_buffers_are_found_by_their_axes():
    scores = compiled(
        lambda q, k: jnp.exp(q @ k.T).sum(), *[jax.ShapeDtypeStruct((300, 8), jnp.float32)] * 2
    )
    assert "f32[300,300]" in hlo.square_buffers(scores, length=300)
    assert hlo.square_buffers(scores, length=301) == []
    logits = compiled(
        lambda x, w: jnp.exp(x @ w).sum(),
        jax.ShapeDtypeStruct((300, 8), jnp.float32),
        jax.ShapeDtypeStruct((8, 77), jnp.float32),
    )
    assert hlo.square_buffers(logits, length=300) == []
    assert "f32[300,77]" in hlo.square_buffers(logits, length=300, vocabulary=(77,))
    assert [x[:2] for x in hlo.largest_buffers(hlo.parse(TEXT), 1)] == [(32 * 4 * 2, "bf16[32,4]")]
