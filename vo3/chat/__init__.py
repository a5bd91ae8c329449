"""Conversations as text and as tokens: tags, prompt packs, encoding, positions, and attention policies."""

from vo3.chat.encode import Encoded, State, assistant_header, assistant_tail, encode, encode_turn
from vo3.chat.positions import mrope_positions, next_position
from vo3.chat.prompts import PromptPack, task_mode
from vo3.chat.tags import (
    ParsedTurn,
    Segment,
    format_answer,
    format_call,
    format_segment,
    format_turn,
    parse_segment,
    parse_turn,
)
from vo3.chat.tdam import visibility_from_ids, visibility_from_roles
from vo3.chat.tokens import Role, Specials

__all__ = [
    "Encoded",
    "ParsedTurn",
    "PromptPack",
    "Role",
    "Segment",
    "Specials",
    "State",
    "assistant_header",
    "assistant_tail",
    "encode",
    "encode_turn",
    "format_answer",
    "format_call",
    "format_segment",
    "format_turn",
    "mrope_positions",
    "next_position",
    "parse_segment",
    "parse_turn",
    "task_mode",
    "visibility_from_ids",
    "visibility_from_roles",
]
