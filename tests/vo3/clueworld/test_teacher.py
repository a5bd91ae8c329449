"""What a model predicts of true trajectories, part by part."""

import numpy as np
import pytest
from flax import nnx

import vo3.models
from vo3.clueworld import teacher
from vo3.clueworld.config import model_config
from vo3.clueworld.tokenizer import build_tokenizer
from vo3.models.qwen2_5_vl.model import Qwen2_5_VL
from vo3.train import config as config_lib
from vo3.train.sft import train


def told(text: str) -> dict[str, list[str]]:
    """The pieces of each part of a text."""
    tokenizer = build_tokenizer()
    ids = np.array([tokenizer(text).input_ids])
    return {
        name: tokenizer.convert_ids_to_tokens(ids[where].tolist())
        for name, where in teacher.parts(ids, tokenizer).items()
    }


def test_parts_of_what_is_said():
    found = told(
        "<think>cards red blue pink. look at pink:914-1027.</think>\n"
        '{"temporal_segment": [914, 1027], "sampling_strategy": "fine"}'
    )
    assert found["cards"] == [" red", " blue", " pink"]
    assert found["times"] == ["91", "4", "10", "27"]  # not what the call copies
    assert found["digits"] == found["letters"] == []
    found = told("<think>the pink card shows 4. the blue card shows 5. the sum of 4 and 5 is 9, D.")
    assert found["digits"] == [" 4", " 5"] and [t.strip() for t in found["letters"]] == ["D"]
    assert found["cards"] == found["times"] == []
    found = told("<think>cards red blue. after red blue.</think>")
    assert found["cards"] == [" red", " blue"]  # not the answer


def test_a_trained_model_predicts_digits_off_clips_and_one_that_is_not_does_not():
    config = teacher.STREAMS["trajectories"]
    trained = teacher.predicted(vo3.models.load("clueworld-sft"), config, worlds=8)
    right, total = trained["digits"]
    assert right == total >= 16
    assert trained["cards"][0] >= 0.95 * trained["cards"][1] > 0
    blank = teacher.predicted(Qwen2_5_VL(model_config(), rngs=nnx.Rngs(0)), config, worlds=8)
    assert {name: n for name, (_, n) in blank.items()} == {k: n for k, (_, n) in trained.items()}
    assert all(right < total / 2 for right, total in blank.values())


def test_words_of_another_vocabulary_are_not_counted(tiny_hf_checkpoint):
    with pytest.raises(SystemExit, match=r"teacher: .*its vocabulary has \d+ pieces, ClueWorld's"):
        teacher.main([str(tiny_hf_checkpoint), "--worlds=1"])


def test_the_command(capsys, tmp_path):
    teacher.main(["clueworld-sft", "--worlds=1"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| | clueworld-sft |"
    named = [row.split("|")[1].split(",")[0].strip() for row in rows]
    assert named[:3] == ["transcripts: digits", "transcripts: cards", "transcripts: times"]
    assert named[3:] == [f"trajectories: {part}" for part in teacher.PARTS]
    config = config_lib.override(
        config_lib.load("configs/clueworld.py:letters"), steps=1, warmup=0, init_vision=""
    )
    train(config, tmp_path / "run")
    teacher.main([str(tmp_path / "run"), "--worlds=1"])  # a run that is half way
    assert capsys.readouterr().out.startswith(f"| | {tmp_path / 'run'} |")
    with pytest.raises(SystemExit, match="--worlds is 0"):
        teacher.main(["clueworld-sft", "--worlds=0"])
    with pytest.raises(SystemExit, match=r"teacher: .*nothing"):
        teacher.main([str(tmp_path / "nothing")])
