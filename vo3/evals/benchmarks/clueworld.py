"""ClueWorld: the synthetic videos of the embedded model, made where they are missing; the benchmark that needs no download."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from etils import epath

from vo3.evals import extraction
from vo3.evals.benchmarks.base import Benchmark, Options
from vo3.evals.questions import AnnotationError, Question

# (from, to) minutes of the video.
LENGTHS = ((2, 10), (10, 30), (30, 61))


def read(root: epath.Path, files: Sequence[epath.Path], options: Options) -> Iterator[Question]:
    """Twelve questions on each world, three of each quadrant (moments in time, which are not right or wrong, are left out); its video is written on first use."""
    # Imported here: the other benchmarks need neither the renderer nor the model behind it.
    from vo3.clueworld.evaluate import questions
    from vo3.clueworld.film import write_video
    from vo3.clueworld.tasks import GROUNDING, kind_of
    from vo3.clueworld.world import HELD_OUT, make_world

    if options.first < 0 or options.first + options.worlds > HELD_OUT:
        raise AnnotationError(
            f"worlds {options.first} to {options.first + options.worlds - 1}: held out from training are 0 to {HELD_OUT - 1}"
        )
    for seed in range(options.first, options.first + options.worlds):
        world = make_world(seed)
        path = root / "videos" / f"{seed}.mp4"
        if not path.exists():
            write_video(world, path)
        minutes = world.duration / 60
        length = next(
            f"{low} to {high - (high == 61)} minutes" for low, high in LENGTHS if minutes < high
        )
        for task in questions(world, str(path)):
            if task.target is None or task.target.data_source == GROUNDING:
                continue
            categories = {
                "quadrant": (task.target.data_source,),
                "question": (kind_of(task.question),),
                "answer": ("a letter" if task.options else "a word",),
                "length": (length,),
            }
            yield Question(task, "choice" if task.options else "open", categories)


def same_word(text: str, answer: str) -> bool:
    """The answer's word and nothing else."""
    return text.strip() == answer


CLUEWORLD = Benchmark(
    name="clueworld",
    title="ClueWorld",
    source="vo3.clueworld, made from seeds that training never saw",
    files=(),
    counted=0,
    metric="Avg",
    scorer=extraction.Scorer("ClueWorld exact match", "1", extraction.plain_letter, open=same_word),
    others=(),
    read=read,
)
