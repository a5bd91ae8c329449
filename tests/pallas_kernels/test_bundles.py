"""Reading sections and loops out of a final schedule."""

import pytest

from benchmarks import bundles


def schedule(size=400):
    """A schedule of `size` bundles in the dump's form: a step around a guarded section, and one with a loop in it."""
    marks = {
        10: "Start region 1",
        90: "Start/End empty region 2",
        110: "Start region 7",
        300: "Start/End empty region 3",
        395: "Start/End empty region 4",
    }
    branches = {5: 4, 15: 2, 95: 3, 250: 7}
    lines = []
    for at in range(size):
        address = "0" if at == 0 else f"{at:#x}"
        code = f"sbr.rel (%p1) target = $region{branches[at]}" if at in branches else "nop"
        lines.append(f"  {address}   : > {{ {code} }} /* {marks.get(at, '')} */")
    return "\n".join(lines)


def test_sections_loops_and_step():
    sections, step = bundles.read_sections(schedule())
    # A branch at 15 leaves after four more bundles: its section is 20 to 89. The branch at 5 is the pipeline around.
    assert [s.bundles for s in sections] == [70, 200]
    assert [s.loops for s in sections] == [(), (145,)]
    assert step == 400 - 270


def test_short_sections_belong_to_the_step():
    sections, step = bundles.read_sections(schedule(), least=100)
    assert [s.bundles for s in sections] == [200] and step == 200


def test_bundles_per_head():
    assert bundles.Section(700).per_head(7) == 100
    assert bundles.Section(205, (135,)).per_head(7) == pytest.approx(135 + 70 / 7)


def test_cycles_of_a_program_are_those_of_its_entry():
    estimate = 'backend_config={"estimated_cycles":"%d"}'
    lines = [
        "HloModule m",
        "f {",
        estimate % 7,
        "}",
        "ENTRY main {",
        estimate % 20,
        estimate % 3,
        f"x = copy(y), {estimate % 100}",
        "}",
    ]
    assert bundles.entry_cycles("\n".join(lines)) == 23


def test_a_kernel_is_named_once():
    one = bundles.Kernel(1, {}, (), 1)
    compiled = bundles.Compiled("x", 0, 0, 0, 0, {"splash_dq.1": one, "splash_dkv.1": one})
    assert compiled.kernel("dq") is one
    with pytest.raises(ValueError, match="2 kernels match 'splash'"):
        compiled.kernel("splash")
