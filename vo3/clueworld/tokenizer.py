"""The embedded model's tokenizer: a small word-level vocabulary with the ChatML and vision tokens of Qwen2.5-VL.

Pieces are fixed strings, most words in two forms (with and without a leading space), so that decoding is exact: the
pieces are put together as they are. Numbers go two digits a piece from the left ("1210" is "12" "10", "754" is "75" "4"), as the world's clock shows them.
"""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vo3.clueworld.world import COLORS

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
UNKNOWN = "<|unknown|>"
_TAGS = ("think", "grounding", "answer")
_MARKS = (
    '{"temporal_segment": [',
    '], "sampling_strategy": "',
    '"}',
    "]}",
    "\n",
    " ",
    ", ",
    ",",
    ": ",
    ":",
    "-",
    ".",
    "?",
    "'",
    "(",
    ")",
)
_WORDS = (
    "system user assistant coarse medium fine "
    "A B C D yes no "
    "Which What How Is Answer Look There Cards Card Clip Action Observation Time "
    "digit number card cards are is on the there many comes first last after before of a an in it not "
    "video see seen shows show look closer at then needed only with evidence find and answer one letter word "
    "frames frame fps from to s seconds second sum order time "
    "failed if call window error again please now must no more calls left "
    "When or has digits higher shown"
)


def _options() -> list[str]:
    """ "A red", "B 3": an option is one piece, so that its letter is found from its text by one step of attention.

    With letter and text apart that takes an induction circuit, which a decoder of this size did not form in 38,000 examples; so, it is there after 2,400.
    """
    texts = [*COLORS, *(str(d) for d in range(10)), "yes", "no"]
    return [f"{letter} {text}" for letter in "ABCD" for text in texts]


def vocabulary() -> list[str]:
    """Every piece, in id order: specials, the unknown piece, tags, marks, one and two digits, digits after a space, colours with a colon, words, words after a space, options."""
    words = list(dict.fromkeys(_WORDS.split() + list(COLORS)))
    tags = [f"<{slash}{tag}>" for tag in _TAGS for slash in ("", "/")]
    digits = [str(d) for d in range(10)] + [f"{d:02d}" for d in range(100)]
    # " 3" is one piece, as " red" is: an answer is one token.
    alone = [f" {d}" for d in range(10)]
    # "red:" is one piece, so that the token that asks for the card's times names its colour.
    named = [f"{space}{color}:" for color in COLORS for space in ("", " ")]
    spaced = [" " + word for word in words]
    pieces = [
        *SPECIAL,
        UNKNOWN,
        *tags,
        *_MARKS,
        *digits,
        *alone,
        *named,
        *words,
        *spaced,
        *_options(),
    ]
    return list(dict.fromkeys(pieces))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer as transformers loads it from the checkpoint's directory."""
    pieces = vocabulary()
    core = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token=UNKNOWN))
    plain = [p for p in pieces if p not in SPECIAL and p != UNKNOWN]
    alone = [p for p in plain if re.fullmatch(r" [0-9]", p)]
    words = [p for p in plain if re.fullmatch(r" ?[A-Za-z]+", p)]
    options = _options()
    others = [p for p in plain if p not in {*words, *alone, *options}]
    # Marks before words, the longest first; a word must end where the word ends ("A" is not in "Also").
    pattern = "|".join(
        [" [0-9](?![0-9])", f"(?:{'|'.join(options)})(?![0-9A-Za-z])"]
        + [re.escape(p) for p in sorted(others, key=len, reverse=True) if p != " "]
        + [" ?[A-Za-z]+", " "]
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
