"""Adapters from public annotation formats, read from local files, to triplets (or to material, for captions).

Every reader is a generator `(path, *, split) -> triplets`. A row that does not fit its format is an error that names file, row
and reason: a format misread in silence would cost a whole run. A row whose answer is none of its options fits its format; admission
turns it away and counts it. Formats, as their publishers document them:

  charades-sta      text: `VIDEO START END##sentence.`                                                       (grounding)
  next-gqa          a folder or CSV: `video_id, ..., question, answer, qid, type, a0..a4`; beside it gsub_SPLIT.json with
                    `{video: {duration, location: {qid: [[start, end], ...]}, fps}}` and, if there, map_vid_vidorID.json
  cg-bench          JSON list: `video_uid, qid, question, choices, right_answer, clue_intervals, duration`
  llava-video       JSON list: `id, data_source, video, conversations` (human and gpt turns in pairs)
  longvideo-reason  JSON or JSONL: `videos, problem, answer`, options inside the problem
  longvt            JSON, JSONL or Parquet: `prompt` (chat turns) or `question`, `video` or `videos`, `reward_model.ground_truth` or
                    `answer`, and where given `time` or `extra_info.time_reference` in seconds
  triplets          JSONL as this package writes (`Triplet.to_json`)
  material          JSONL: `id, video, captions: [{"timestamp": [start, end], "text"}]`; captions may be left out
"""

from __future__ import annotations

import csv
import json
import re
import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from data_prep import matching
from data_prep.jsonish import encodable, interval
from data_prep.schema import Caption, Material, Triplet
from vo3.data.files import RowFiles
from vo3.trajectory import Clue

_CHARADES = re.compile(r"^(\S+)\s+(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)##(.+)$")
_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(.+?)\s*$")
_MARKS = re.compile(r"<(?:image|video)>\s*")
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LETTERS = string.ascii_uppercase


class SourceError(ValueError):
    """A file that does not read as its format."""


def _fail(path: Any, where: Any, reason: str) -> SourceError:
    return SourceError(f"{path}, {where}: {reason}")


def split_options(text: str) -> tuple[str, dict[str, str] | None]:
    """A question with its options inside, as (question, options). Options are the last lines that read A., B., ... in order."""
    lines = [line for line in _MARKS.sub("", text).split("\n") if line.strip()]
    lists: list[tuple[int, dict[str, str]]] = []
    for number, line in enumerate(lines):
        match = _OPTION.match(line)
        if match and match[1] == "A":
            lists.append((number, {"A": match[2]}))
        elif match and lists and match[1] == _LETTERS[len(lists[-1][1]) % len(_LETTERS)]:
            lists[-1][1][match[1]] = match[2]
        # Another line after the options ("Answer with the letter.") is an instruction, not part of the question.
    # A list before the last one is part of the question.
    first, options = next((x for x in reversed(lists) if len(x[1]) > 1), (len(lines), None))
    question = "\n".join(lines[:first]).strip()
    question = re.sub(r"\n?\s*(?:options|choices)\s*:?\s*$", "", question, flags=re.IGNORECASE)
    return question, options


def _lettered(choices: Any) -> dict[str, str]:
    """A list of choices by letter; leading letters that the data set wrote itself are taken off."""
    texts = [str(c).strip() for c in choices]
    matches = [_OPTION.match(text) for text in texts]
    if all(m and m[1] == letter for m, letter in zip(matches, _LETTERS)):
        texts = [m[2] for m in matches]
    return dict(zip(_LETTERS, texts))


def charades_sta(path: str, *, split: str = "") -> Iterator[Triplet]:
    """One line a sentence; videos are `VIDEO.mp4`."""
    for number, line in enumerate(epath.Path(path).read_text().split("\n"), start=1):
        if not line.strip():
            continue
        match = _CHARADES.match(line.strip())
        if match is None:
            raise _fail(path, f"line {number}", "not `VIDEO START END##sentence`")
        video, start, end, sentence = match.groups()
        if float(end) <= float(start):
            continue  # a few published lines are empty intervals: there is no moment to find
        yield Triplet(
            id=f"{video}-{number}", video=f"{video}.mp4", question=sentence.strip().rstrip("."), answer="",
            kind="grounding", clues=(Clue(float(start), float(end)),), source="charades-sta",
        )  # fmt: skip


def next_gqa(path: str, *, split: str = "val") -> Iterator[Triplet]:
    """`path` is the folder that holds SPLIT.csv, gsub_SPLIT.json and the map of video ids, or the CSV itself."""
    table = epath.Path(path)
    folder, name = (table.parent, table.stem) if table.suffix == ".csv" else (table, split or "val")
    table = folder / f"{name}.csv"
    if not table.exists():
        raise SourceError(f"{table} does not exist; give the folder of NExT-GQA's CSV files")
    spans = _json_or(folder / f"gsub_{name}.json", {})
    places = _json_or(folder / "map_vid_vidorID.json", {})
    with table.open("r") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                video = row.get("video_id") or row["video"]
                # One published row has the same option twice.
                options = _lettered(dict.fromkeys(row[f"a{i}"] for i in range(5)))
                answer = matching.letter_of(row["answer"], options)
                if answer is None and row["answer"].strip().isdigit():
                    answer = _LETTERS[int(row["answer"])]
                qid, question = row["qid"], row["question"]
            except KeyError as error:
                raise _fail(table, f"line {number}", f"no column {error}") from error
            located = spans.get(video, {}).get("location", {}).get(qid, [])
            clues = tuple(Clue(float(a), float(b)) for a, b in located)
            yield Triplet(
                id=f"{video}-{qid}", video=f"{places.get(video, video)}.mp4",
                question=_asked(question), answer=answer or row["answer"], options=options, clues=clues, source="next-gqa",
            )  # fmt: skip


def _asked(question: str) -> str:
    text = question.strip()
    return text if text.endswith("?") else text + "?"


def cg_bench(path: str, *, split: str = "") -> Iterator[Triplet]:
    """`right_answer` is a letter."""
    for number, row in _rows(path):
        try:
            options = _lettered(row["choices"])
            answer = str(row["right_answer"]).strip()
            clues = tuple(Clue(float(a), float(b)) for a, b in row.get("clue_intervals") or ())
            triplet = Triplet(
                id=str(row["qid"]), video=f"{row['video_uid']}.mp4", question=str(row["question"]).strip(),
                answer=answer, options=options, clues=clues, source="cg-bench",
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise _fail(path, f"row {number}", f"{type(error).__name__}: {error}") from error
        yield triplet


def llava_video(path: str, *, split: str = "") -> Iterator[Triplet]:
    """Each pair of turns is a triplet; the first human turn carries the video mark and often an instruction in its last line."""
    for number, row in _rows(path):
        turns = row.get("conversations")
        video = row.get("video")
        if not isinstance(turns, list) or not isinstance(video, str):
            raise _fail(path, f"row {number}", "no conversations, or no video")
        source = str(row.get("data_source") or "").strip("/")
        place = video if not source or video.startswith(source) else f"{source}/{video}"
        for pair in range(len(turns) // 2):
            human, gpt = turns[2 * pair], turns[2 * pair + 1]
            if human.get("from") != "human" or gpt.get("from") != "gpt":
                raise _fail(path, f"row {number}", f"turn {2 * pair} is no human and gpt pair")
            question, options = split_options(human["value"])
            given = str(gpt["value"]).strip()
            answer = matching.letter_of(given, options) or given if options else given
            yield Triplet(
                id=f"{row.get('id', number)}-{pair}", video=place, question=question, answer=answer,
                options=options, source="llava-video",
            )  # fmt: skip


def longvideo_reason(path: str, *, split: str = "") -> Iterator[Triplet]:
    """The answer may stand in tags."""
    for number, row in _rows(path):
        video = row.get("videos") or row.get("video")
        video = video[0] if isinstance(video, list) and video else video
        problem = row.get("problem") or row.get("question")
        given = row.get("answer") or row.get("solution")
        if not all(isinstance(x, str) and x.strip() for x in (video, problem, given)):
            raise _fail(path, f"row {number}", "needs videos, problem and answer")
        yield _free(f"{row.get('id', number)}", video, problem, given, (), "longvideo-reason")


def longvt(path: str, *, split: str = "") -> Iterator[Triplet]:
    """Rows for RL; a JSON text inside a column is read."""
    for number, row in _rows(path):
        row = {k: _nested(v) for k, v in row.items()}
        extra = row.get("extra_info") if isinstance(row.get("extra_info"), Mapping) else {}
        problem = extra.get("question") or row.get("question") or _last_user(row.get("prompt"))
        model = row.get("reward_model") if isinstance(row.get("reward_model"), Mapping) else {}
        given = model.get("ground_truth") or row.get("answer") or extra.get("answer")
        video = (
            row.get("videos")
            or row.get("video")
            or extra.get("video_path")
            or row.get("video_path")
        )
        video = video[0] if isinstance(video, list) and video else video
        video = video.get("video") if isinstance(video, Mapping) else video
        if not all(isinstance(x, str) and x.strip() for x in (video, problem, given)):
            raise _fail(path, f"row {number}", "needs a question, a video and a ground truth")
        times = interval(row.get("time") or extra.get("time_reference") or ())
        clues = (Clue(times[0], times[1]),) if times and times[1] > times[0] else ()
        name = str(row.get("id") or extra.get("index") or number)
        yield _free(name, video.removeprefix("file://"), problem, given, clues, "longvt")


def _free(name: str, video: str, problem: str, given: str, clues: tuple[Clue, ...], source: str) -> Triplet:  # fmt: skip
    question, options = split_options(problem)
    tagged = _ANSWER_TAG.search(given)
    answer = (tagged[1] if tagged else given).strip()
    if options:
        answer = matching.letter_of(answer, options) or answer
    return Triplet(name, video, question, answer, options, clues=clues, source=source)


def triplets(path: str, *, split: str = "") -> Iterator[Triplet]:
    """This package's own rows."""
    for number, row in _rows(path):
        try:
            yield Triplet.from_json(dict(row))
        except ValueError as error:
            raise _fail(path, f"row {number}", str(error)) from error


def material(path: str, *, split: str = "") -> Iterator[Material]:
    """Videos for stage 0."""
    for number, row in _rows(path):
        if not isinstance(row.get("video"), str) or not row["video"]:
            raise _fail(path, f"row {number}", "no video")
        captions = []
        for caption in row.get("captions") or ():
            times = interval(caption.get("timestamp"))
            if times is None or not isinstance(caption.get("text"), str):
                raise _fail(path, f"row {number}", f"no caption: {caption!r}"[:120])
            captions.append(Caption(times[0], times[1], caption["text"]))
        name = str(row.get("id") or number)
        yield Material(name, row["video"], tuple(captions), str(row.get("source") or "material"))


READERS: dict[str, Callable[..., Iterator[Any]]] = {
    "charades-sta": charades_sta,
    "next-gqa": next_gqa,
    "cg-bench": cg_bench,
    "llava-video": llava_video,
    "longvideo-reason": longvideo_reason,
    "longvt": longvt,
    "triplets": triplets,
    "material": material,
}


def _rows(path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a JSON list, JSONL or Parquet file, with their numbers from 0."""
    try:
        yield from enumerate(map(encodable, RowFiles(path)))
    except FileNotFoundError as error:
        raise SourceError(f"{error}") from error


def _json_or(path: epath.Path, default: Any) -> Any:
    return encodable(json.loads(path.read_text())) if path.exists() else default


def _nested(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return encodable(json.loads(value))
        except ValueError:
            return value
    return value


def _last_user(prompt: Any) -> str | None:
    """The last user turn's text of a chat prompt."""
    if not isinstance(prompt, list):
        return None
    for turn in reversed(prompt):
        if isinstance(turn, Mapping) and turn.get("role") == "user":
            content = turn.get("content")
            if isinstance(content, list):
                content = "\n".join(
                    part.get("text", "") for part in content if isinstance(part, Mapping)
                )
            return content
    return None
