"""A byte-level tokenizer, a random tiny model, videos made of noise, and an engine whose model says what a test wants."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import typing

import av
import numpy as np
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vo3.models.qwen2_5_vl import Qwen2_5_VL, Qwen2_5_VLConfig
from vo3.rollout import Buckets, Engine, RolloutPolicy
from vo3.rollout.leaf import Leaf
from vo3.rollout.session import SampledTurn
from vo3.trajectory import Task
from vo3.video import Clip, CropPolicy

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens after them: every tag is split over as many tokens as it has letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, [], byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS)})
    return tokenizer


def random_model(tokenizer, **dtypes) -> Qwen2_5_VL:
    """Random, with weights large enough that greedy tokens depend on what was shown."""
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("vision_start", "vision_end", "image_pad", "video_pad")
    }
    config = Qwen2_5_VLConfig.tiny(
        len(tokenizer),
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        text={"initializer_range": 0.2},
        vision={"initializer_range": 0.2},
    )
    model = Qwen2_5_VL(config, rngs=nnx.Rngs(1), **dtypes)
    # A special token in the middle of a turn would be a word to us and a video to the reference.
    kernel = model.unembedding.kernel
    kernel[...] = kernel[...].at[:, -len(SPECIALS) :].set(0)
    return model


def write_checkpoint(folder: pathlib.Path) -> pathlib.Path:
    """A Hugging Face directory of `random_model` with its tokenizer and `CROP`."""
    tokenizer = byte_tokenizer()
    random_model(tokenizer).save_hf(folder)
    tokenizer.save_pretrained(folder)
    (folder / "vo3.json").write_text(json.dumps({"crop_policy": CROP.to_json()}))
    return folder


CROP = CropPolicy(
    recipe="rl",
    max_frames=8,
    overview_quota=64,
    overview_min=4,
    max_crop_frames=4,
    coarse_quota=4,
    medium_quota=8,
    fine_quota=16,
    crop_min=2,
)
BUCKETS = Buckets(tokens=(16, 64, 256), patches=(64, 256), capacity=(512, 1024, 2048, 4096))


@dataclasses.dataclass
class NoiseVideo:
    """A video of seeded noise, in memory. `failure` is raised by every crop."""

    seed: int = 0
    duration: float = 40.0
    failure: Exception | None = None
    overviews: int = 0

    def overview(self) -> Clip:
        self.overviews += 1
        return self._clip(0.0, self.duration, 8, (28, 56), 0)

    def crop(self, t0: float, t1: float, strategy: str, *, rate: float | None = None) -> Clip:
        if self.failure is not None:
            raise self.failure
        return self._clip(
            t0,
            t1,
            4,
            {"coarse": (28, 28), "medium": (28, 56), "fine": (56, 56)}[strategy],
            int(t0 * 10) + 1,
        )

    def _clip(self, start, end, frames, size, salt) -> Clip:
        rng = np.random.default_rng([self.seed, salt])
        return Clip(
            frames=rng.integers(0, 256, (frames, *size, 3), np.uint8),
            times=np.linspace(start, end, frames),
            indices=np.linspace(start * 10, end * 10, frames).astype(np.int64),
            fps=frames / (end - start),
            start=start,
            end=end,
            grid=(frames // 2, size[0] // 14, size[1] // 14),
            tokens=frames // 2 * (size[0] // 28) * (size[1] // 28),
        )


def write_mp4(path, *, seconds=12, fps=10, size=(64, 112), seed=0) -> str:
    """A real h264 file: coloured blocks that move and change every second."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for i in range(seconds * fps):
            if i % fps == 0:
                base = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), np.uint8)
            image = np.kron(base, np.ones((16, 16, 1), np.uint8))
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.roll(image, i % fps, axis=1), format="rgb24")
                )
            )
        container.mux(stream.encode())
    return str(path)


class ScriptedEngine(Engine):
    """An engine whose model says `script[i]` in its i-th turn, after `babble` tokens of its own.

    A random model never writes a tag. What it says itself is sampled as ever; the scripted text is appended as if it had been sampled.
    """

    def __init__(self, *args, script, babble=0, stop="tag", **kwargs):
        super().__init__(*args, **kwargs)
        self.script, self.babble, self.stop = list(script), babble, stop
        self.said = 0

    def sample_turn(self, session, watch, sampling, on_token):
        babbled = SampledTurn((), (), "length")
        if self.babble:
            quiet = type(watch)(self.tokenizer, tags=(), ends=(), limit=self.babble)
            babbled = session.sample(quiet, sampling, on_token)
        text = self.script[self.said]
        self.said += 1
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        session.context.append_ids(ids)
        reason = None
        for token in ids:
            piece, reason = watch.push(token)
            on_token(token, piece)
        assert reason in (None, "tag", "end"), "a script runs past its stop"
        return SampledTurn(
            (*babbled.ids, *ids), (*babbled.logprobs, *(0.0,) * len(ids)), reason or self.stop
        )


def scripted_engine(
    model, tokenizer, programs, *script, babble=0, stop="tag", shared_prefixes=0, **policy
) -> ScriptedEngine:
    """An engine with small buckets and a short context that follows a script."""
    return ScriptedEngine(
        model,
        tokenizer=tokenizer,
        programs=programs,
        policy=RolloutPolicy(**{"max_length": 4096, "reserve": 64, **policy}),
        buckets=BUCKETS,
        shared_prefixes=shared_prefixes,
        script=script,
        babble=babble,
        stop=stop,
    )


TASK = Task("t1", "noise", "What is on the card?", {"A": "a cat", "B": "a dog"})


def call(t0=3.0, t1=9.0, strategy="fine", think="hm") -> str:
    return f'<think>{think}</think>\n<grounding>{{"temporal_segment": [{t0}, {t1}], "sampling_strategy": "{strategy}"}}</grounding>'


def answer(text="A") -> str:
    return f"<think>so</think>\n<answer>{text}</answer>"


class ScriptedLeaf(Leaf):
    """A leaf that says `scripts[seed][i]` in its i-th turn, after `babble` tokens of its own; see `ScriptedEngine`."""

    scripts: typing.ClassVar[dict[int, tuple[str, ...]]] = {}
    babble: typing.ClassVar[int] = 4
    tokenizer: typing.ClassVar[PreTrainedTokenizerFast]
    turn = 0

    def token(self, token, logprob):
        self._ids.append(token)
        self._logprobs.append(logprob)
        if len(self._ids) < self.babble:
            return
        text = self.scripts[self.sampling.seed][self.turn]
        self.turn += 1
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        stops = [self._sample.watch.push(t)[1] for t in ids]
        self.said(
            SampledTurn(
                (*self._ids, *ids), (*self._logprobs, *(0.0,) * len(ids)), stops[-1] or "tag"
            ),
            self.babble,
        )
