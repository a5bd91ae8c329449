"""What a baseline says of its frames, by hand."""

from vo3.clueworld.evaluate import FIRST_SEED
from vo3.clueworld.figures import Share
from vo3.clueworld.one_turn import said
from vo3.clueworld.scales import get_scale
from vo3.clueworld.views import observe, sightings
from vo3.clueworld.world import make_world
from vo3.trajectory import Task, Trajectory, Turn


def test_cards_and_digits_are_held_against_the_frames():
    world = make_world(FIRST_SEED)
    shown = observe(world, 0, policy=get_scale("clueworld").view("fine"))
    seen = [s.card for s in sightings(world, shown, missing=True)]
    missed = [card for card in world.cards if card not in seen]
    assert seen and missed, "this world does not serve"

    def row(number, think):
        turns = (
            Turn("question", "<video>", observations=(shown,)),
            Turn("answer", f"<think>{think}</think>\n<answer>1</answer>", answer="1"),
        )
        return Trajectory(Task(f"{world.seed}-x-{number}", "-", "?"), turns, "answered", answer="1")

    named = f"cards {' '.join(card.color for card in seen)}."
    wrong = (missed[0].digit + 1) % 10
    rows = [
        row(0, f"{named} the {seen[0].color} card shows {seen[0].digit}, B."),
        row(1, f"{named} the {missed[0].color} card shows {wrong}."),
        row(2, f"cards {missed[0].color}. the violet-green card shows 3."),
        row(3, "nothing that it was taught"),
    ]
    assert {name: measure.figure for name, measure in said(rows).items()} == {
        "think: lists exactly the cards that frames show": Share(2, 3),
        "think: digit of a card that frames show": Share(1, 1),
        "think: digit of a card that no frame shows": Share(0, 1),
    }
