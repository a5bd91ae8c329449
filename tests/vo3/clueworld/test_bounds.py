"""The oracle bound by hand, and what is legible."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vo3.clueworld import bounds, tasks
from vo3.clueworld.bounded import bounded
from vo3.clueworld.bounds import looks
from vo3.clueworld.evaluate import FIRST_SEED, questions, questions_of
from vo3.clueworld.figures import Share
from vo3.clueworld.guess import chance
from vo3.clueworld.legibility import Reader, Readings, cut_cells, glyph, readings
from vo3.clueworld.pixels import Renderer
from vo3.clueworld.scales import CLIPS, COARSE_ONLY, RESOLUTIONS, SCALES, VIEWS, get_scale, uniform
from vo3.clueworld.views import observe
from vo3.clueworld.world import HEIGHT, WIDTH, Card, WorldConfig, make_world

SCALE = get_scale("clueworld")
RED, BLUE = Card("red", 3, 0, 9, (0, 0)), Card("blue", 5, 20, 29, (1, 1))


def task(question, options=None):
    world = make_world(3)
    made = tasks.make_task(
        world, question, video="-", task_id="-", rng=np.random.default_rng(0), options=False
    )
    return dataclasses.replace(made, options=options)


def test_the_best_guess_by_hand():
    digit, total = tasks.digit_question(RED), tasks.added(RED, BLUE)
    higher = tasks.compared(RED, BLUE)
    assert chance(digit, task(digit), {"red"}) == 1
    assert chance(digit, task(digit), set()) == pytest.approx(0.1)
    letters = {"A": "3", "B": "1", "C": "0", "D": "9"}
    assert chance(digit, task(digit, letters), set()) == pytest.approx(0.25)
    # Of two digits that are at most 9 together, 10 of 55 pairs make 9.
    assert chance(total, task(total), set()) == pytest.approx(10 / 55)
    assert chance(total, task(total), {"red"}) == pytest.approx(1 / 7)
    assert chance(total, task(total), {"red", "blue"}) == 1
    # Red shows 3: of the nine others, six are higher.
    assert chance(higher, task(higher), {"red"}) == pytest.approx(6 / 9)
    assert chance(higher, task(higher), set()) == pytest.approx(0.5)


def test_frames_that_show_everything_bound_nothing_and_two_frames_all():
    worlds = range(FIRST_SEED, FIRST_SEED + 6)
    every = looks(SCALE, *RESOLUTIONS["coarse"], worlds)
    assert every and all(look.seen == look.cards and look.chance == 1 for look in every)
    assert len(every) == 6 * 2 * 3
    # A pair of such frames takes 112 tokens: two frames beside one clip, four beside two.
    few = looks(SCALE, 224, 392, worlds)
    assert np.mean([look.seen for look in few]) < 0.5
    asked = [q for s in worlds for q in questions(make_world(s), "-")]
    assert sum(t.target.data_source == tasks.SINGLE_TOOL for t in asked) == 18
    share = bounds.table(SCALE, 6, legible="coarse")[tasks.SINGLE_TOOL]
    assert share.contained == Share(18, 18) and share.right == 1 and share.blind < 0.3
    assert all(look.read == look.chance for look in every)


def reader(probable):
    """Readings of ten cards with the digits 0 to 9, each as probable as told, the rest shared by all others."""
    rest = (1 - probable) / 9
    return Readings(np.arange(10), np.full((10, 10), rest) + (probable - rest) * np.eye(10))


def test_the_best_guess_of_a_reader_by_hand():
    digit, total, higher = tasks.digit_question(RED), tasks.added(RED, BLUE), tasks.compared(RED, BLUE)  # fmt: skip
    both = {"red", "blue"}
    for sure in (1.0, 0.5):
        for question, seen in ((digit, {"red"}), (total, both), (higher, both), (higher, {"red"})):
            exact = chance(question, task(question), seen)
            assert chance(question, task(question), seen, reader(sure)) == pytest.approx(exact)
    # Who reads nothing off a card that is shown knows as little as without it.
    nothing = reader(0.1)
    assert chance(digit, task(digit), {"red"}, nothing) == pytest.approx(0.1)
    assert chance(higher, task(higher), both, nothing) == pytest.approx(0.5)
    # Red's 3 is half the time taken for an 8: then the answer is wrong, unless the options leave the 8 out or the other card is lower than both.
    mistaken = reader(0.9)
    third = np.where(np.eye(10)[3], 0.4, 0.0) + np.where(np.eye(10)[8], 0.6, 0.0)
    often = Readings(np.append(mistaken.digits, 3), np.vstack([mistaken.probable, third]))
    assert chance(digit, task(digit), {"red"}, often) == pytest.approx(0.5)
    letters = {"A": "3", "B": "1", "C": "0", "D": "9"}
    assert chance(digit, task(digit, letters), {"red"}, often) == 1
    assert chance(higher, task(higher), both, often) == pytest.approx(0.5)
    low = tasks.compared(RED, Card("blue", 1, 20, 29, (1, 1)))
    assert chance(low, task(low), both, often) == 1
    # A sum with 5: that 8 cannot have been summed, as 13 has two digits.
    assert chance(total, task(total), both, often) == 1
    assert (often.right, often.total) == (10, 11)
    with pytest.raises(ValueError, match="none of 11 cards shows 10; read more worlds"):
        often.of(10)


@given(st.integers(1, 2**40), st.sampled_from(["digit", "after", "sum", "higher", "ends"]))
def test_a_sure_reader_is_the_oracle(seed, kind):
    world, rng = make_world(seed), np.random.default_rng(seed)
    question = tasks.KINDS[kind](world, rng)
    seen = {card.color for card in question.looks if rng.random() < 0.7}
    asked = task(question)
    oracle = chance(question, asked, seen)
    assert chance(question, asked, seen, reader(1.0)) == pytest.approx(oracle)


def test_questions_are_those_of_the_evaluation():
    world = make_world(FIRST_SEED)
    pairs = list(questions_of(world, "w.mp4", options=0.5, quadrants=tuple(tasks.QUADRANTS)))
    assert [t for _, t in pairs] == list(questions(world, "w.mp4"))
    assert all(question.text == t.question for question, t in pairs)


def test_what_is_seen_is_what_a_frame_shows():
    world = make_world(FIRST_SEED + 1)
    policy = uniform(SCALE.policy, *RESOLUTIONS["middle"], tokens=SCALE.tokens(1))
    times = observe(world, 0, policy=policy).times
    shown = {c.color for c in (world.card_at(t) for t in times) if c}
    for look, (question, _) in zip(
        looks(SCALE, *RESOLUTIONS["middle"], [world.seed]),
        questions_of(world, "-", options=0.5, quadrants=(tasks.SINGLE_TOOL, tasks.MULTI_TOOL)),
        strict=True,
    ):
        if len(question.looks) == 1:
            assert look.seen == len({c.color for c in question.looks} & shown)


@pytest.mark.parametrize("name", SCALES)
def test_baselines_see_no_fewer_tokens_than_an_agent(name):
    scale = get_scale(name)
    world = make_world(FIRST_SEED, config=scale.world)
    for view in VIEWS[1:]:
        shown = observe(world, 0, policy=scale.view(view))
        size = RESOLUTIONS["coarse"] if view == COARSE_ONLY else RESOLUTIONS[view]
        assert (shown.height, shown.width) == size
        least = scale.tokens(1 if view == COARSE_ONLY else 2)
        pair = size[0] * size[1] // 28**2
        assert least <= shown.tokens < least + pair
    with pytest.raises(ValueError, match="unknown view 'large'"):
        scale.view("large")
    with pytest.raises(ValueError, match="unknown scale"):
        get_scale("macro")


def test_where_digits_lie_on_patches():
    """Placement favours the fine grid: middle frames cut the digits of 5 cells of 9, the others none. The table of `bounds` says so."""
    config = WorldConfig()
    cut = {n: cut_cells(*size, config, side=14) for n, size in RESOLUTIONS.items()}
    assert cut["fine"] == {"columns": 0, "rows": 0, "any": 0} == cut["coarse"]
    assert cut["middle"]["columns"] == cut["middle"]["rows"] == pytest.approx(1 / 3)
    assert cut["middle"]["any"] == pytest.approx(5 / 9)
    # By hand: the digit of the last column stands in [290, 300); middle patches are 42 native pixels wide, and 7 x 42 is 294.
    assert (glyph((2, 0), config).left, glyph((2, 0), config).right) == (290, 300)
    # The micro-world's places suit the middle frames that its agent and its baseline both look at.
    micro = get_scale("micro").world
    assert cut_cells(*RESOLUTIONS["middle"], micro, side=14)["any"] == 0
    assert cut_cells(*RESOLUTIONS["fine"], micro, side=14)["any"] == 0


def test_the_box_of_a_digit_is_where_it_is_drawn():
    world = dataclasses.replace(make_world(5), distractors=())
    card = world.cards[0]
    frames = []
    for digit in (1, 8):
        cards = (dataclasses.replace(card, digit=digit),)
        frames.append(
            Renderer(dataclasses.replace(world, cards=cards)).frame(card.start).astype(int)
        )
    rows, columns = np.nonzero((frames[0] != frames[1]).any(-1))
    box = glyph(card.cell, world)
    assert box.left <= columns.min() and columns.max() < box.right
    assert box.top <= rows.min() and rows.max() < box.bottom
    assert frames[0].shape == (HEIGHT, WIDTH, 3)


def test_the_reader_reads_fine_digits_and_not_those_of_specks():
    config = WorldConfig()
    first = bounds.READ_SEED
    fine = readings(Reader(84, 168, config, frames=60), worlds=4, first_seed=first)
    tiny = readings(Reader(28, 28, config, frames=60), worlds=12, first_seed=first)
    assert fine.right > 0.9 * fine.total
    assert tiny.right < 0.7 * tiny.total
    for read in (fine, tiny):
        np.testing.assert_allclose(read.probable.sum(1), 1)
    # It knows when it does not know.
    assert tiny.probable.max(1).mean() < fine.probable.max(1).mean()


def test_the_coarsest_legible_resolution():
    read = {"coarse": Share(94, 100), "middle": Share(95, 100), "fine": Share(100, 100)}
    assert bounds.coarsest(read) == "middle"
    with pytest.raises(ValueError, match="enlarge"):
        bounds.coarsest(dict.fromkeys(RESOLUTIONS, Share(1, 100)))


def test_the_command_end_to_end(tmp_path, capsys):
    out = tmp_path / "b.json"
    arguments = ["--worlds", "3", "--read", "15", "--frames", "60", "--json", str(out)]
    bounds.main(arguments)
    printed = capsys.readouterr().out
    assert "coarsest legible" in printed and "clue_multi_w_tool: sum" in printed
    assert re.search(r"coarse-only +IoU >= 0\.3 .* of 9; mean IoU 0\.\d", printed)
    written = json.loads(out.read_text())
    assert written["legible"] in RESOLUTIONS and "clue_single_w_tool" in written["bounds"]
    assert len(written["with the reader"]) == 2 * 2 * len(RESOLUTIONS)
    for wrong, told in (
        (["--worlds", "0"], "--worlds is 0: at least 1"),
        (["--worlds", "50001"], "--worlds is 50001: .* at most 50000"),
        (["--read", "40000"], "--read is 40000: .* at most 30000"),
        (["--frames", "0"], "--frames is 0"),
        (["--frames", "2"], r"bounds: no template of \d: 2 frames"),
        (["--worlds", "1", "--read", "1", "--frames", "60"], r"bounds: none of \d cards shows \d"),
    ):
        with pytest.raises(SystemExit, match=told):
            bounds.main(wrong)


@given(st.integers(1, 2**40), st.sampled_from(["digit", "sum", "higher"]))
def test_nobody_guesses_worse_for_seeing_more(seed, kind):
    """On the mean over what the digits may be: with some that are seen another guess may happen to be right."""
    question = tasks.KINDS[kind](make_world(seed), np.random.default_rng(seed))
    blind = chance(question, task(question), set())
    assert chance(question, task(question), {c.color for c in question.looks}) == 1 > blind
    if len(question.looks) < 2:
        return
    one, other = question.looks
    remake = tasks.added if question.said.startswith("the sum") else tasks.compared
    allowed = (lambda a, b: a + b <= 9) if remake is tasks.added else (lambda a, b: a != b)
    half = []
    for a, b in itertools.product(range(10), repeat=2):
        if allowed(a, b):
            cards = dataclasses.replace(one, digit=a), dataclasses.replace(other, digit=b)
            asked = remake(*cards)
            half.append(chance(asked, task(asked), {one.color}))
    assert blind <= np.mean(half) <= 1


@pytest.mark.parametrize("view", RESOLUTIONS)
def test_frames_at_the_tokens_of_a_baseline_are_the_baselines(view):
    worlds = range(FIRST_SEED, FIRST_SEED + 6)
    found = looks(SCALE, *RESOLUTIONS[view], worlds, clips=CLIPS)
    seen = []
    for seed in worlds:
        world = make_world(seed)
        times = np.asarray(observe(world, 0, policy=SCALE.view(view)).times)
        two = (tasks.SINGLE_TOOL, tasks.MULTI_TOOL)
        for question, _ in questions_of(world, "-", options=0.5, quadrants=two):
            shows = [((times >= c.start) & (times < c.end)).any() for c in question.looks]
            seen.append(sum(shows))
    assert [look.seen for look in found] == seen
    # Questions on two cards have as many frames either way, those on one have fewer.
    agent = looks(SCALE, *RESOLUTIONS[view], worlds)
    both = [i for i, look in enumerate(found) if look.cards == 2]
    assert [found[i] for i in both] == [agent[i] for i in both]
    assert (found == agent) == (view == "coarse")


@pytest.mark.parametrize("view", VIEWS)
def test_seconds_as_frames_bound_them(view):
    seeds = range(FIRST_SEED, FIRST_SEED + 6)
    found = bounded(SCALE, view, seeds).values
    asked = [t for s in seeds for t in questions(make_world(s), "-")]
    assert list(found) == [t.id for t in asked if t.target.data_source == tasks.GROUNDING]
    for one, iou in found.items():
        world = make_world(int(one.partition("-")[0]))
        times = np.array(observe(world, 0, policy=SCALE.view(view)).times).reshape(-1, 2)
        (clue,) = next(t.target.clues for t in asked if t.id == one)
        shows = ((times >= clue.start) & (times < clue.end)).any(1)
        if not shows.any():
            assert iou == 0
            continue
        start, end = (int(times[shows][i, i]) for i in (0, -1))
        both = max(0, min(end, clue.end) - max(start, clue.start))
        union = (end - start) + (clue.end - clue.start) - both
        assert iou == pytest.approx(both / union)
