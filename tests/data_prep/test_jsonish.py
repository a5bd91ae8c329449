"""Replies as models write them: what is mended, what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import jsonish
from data_prep.jsonish import ReplyError, clock_text, interval, parse_reply, seconds, violations

OBJECT = {"type": "object", "required": ["a"], "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "b": {"type": "string"}}}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ('{"a": [1, 2]}', ""),
        ('```json\n{"a": [1, 2]}\n```', "code fence"),
        ('Sure!\n{"a": [1, 2]}\nDone.', "prose around it"),
        ('{"a": [1, 2,],}', "trailing comma"),
        ("{'a': [1, 2]}", "python quotes"),
        ('Look [here]: {"a": [1, 2,]} and [there]', "prose around it, trailing comma"),
    ],
)
def test_what_is_mended_and_named(text, repaired):
    parsed = parse_reply(text, OBJECT)
    assert parsed.value == {"a": [1, 2]} and parsed.repaired == repaired


def test_a_bare_list_of_the_only_field():
    schema = {"type": "object", "required": ["turns"], "properties": {"turns": {"type": "array"}}}
    assert parse_reply('[{"x": 1}]', schema).value == {"turns": [{"x": 1}]}


def test_the_outer_object_is_mended_before_a_list_in_it_is_taken():
    schema = {"type": "object", "required": ["clues"], "properties": {"clues": {"type": "array"}}}
    parsed = parse_reply('Here:\n{"clues": [1], "detail": "high",\n}', schema)
    assert parsed.value == {"clues": [1], "detail": "high"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"), ("  \n", "empty"), ("no", "not_json"), ('{"a": [1, 2', "truncated"),
        ('{"a": [1, "x"]}', "schema"), ('{"b": ""}', "schema"), ('{"a": [true]}', "schema"),
        ("[" * 5000, "truncated"), ("{'a': " + "[" * 300 + "]" * 300 + "}", "schema"),
    ],
)  # fmt: skip
def test_what_is_refused(text, kind):
    with pytest.raises(ReplyError) as error:
        parse_reply(text, OBJECT)
    assert error.value.kind == kind


def test_a_cut_reply_is_not_a_shorter_one():
    whole = json.dumps({"a": [1, 2, 3]})
    for end in range(1, len(whole)):
        with pytest.raises(ReplyError):
            parse_reply(whole[:end], OBJECT, cut=True)


@settings(max_examples=15)
@given(st.text(max_size=60))
def test_any_text_ends_in_a_value_or_a_named_reason(text):
    # No text of this kind is an object with the list that is asked for.
    with pytest.raises(ReplyError):
        parse_reply(text, OBJECT)


@settings(max_examples=15)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3), max_leaves=8))  # fmt: skip
def test_sound_json_objects_come_back_as_they_are(value):
    parsed = parse_reply(json.dumps({"k": value}), {"type": "object"})
    assert parsed.value == {"k": value} and not parsed.repaired


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (83, 83.0), (83.5, 83.5), ("1:23", 83.0), ("01:23", 83.0), ("1:02:03", 3723.0), ("0:01:23.5", 83.5),
        ("83", 83.0), ("83 s", 83.0), ("83.5 seconds", 83.5), (" 1:23 ", 83.0), ("75:30", 4530.0),
        ("1:60", None), ("1:70:00", None), ("-3", None), (-3, None), (True, None), (None, None), ("soon", None),
        (float("nan"), None), ("1:2:3:4", None), ([1], None),
    ],
)  # fmt: skip
def test_times(value, wanted):
    assert seconds(value) == wanted


def test_whole_numbers_that_no_float_holds_are_no_times():
    assert seconds(10**400) is None


def test_half_a_surrogate_pair_is_replaced_and_can_be_stored():
    schema = {"type": "object", "properties": {"q": {"type": "string"}}}
    value = parse_reply('{"q": "caf\\u00e9 \\ud83d"}', schema).value
    assert value == {"q": "caf\u00e9 ?"} and value["q"].encode()


def test_reversed_times_are_swapped_and_named():
    assert interval(["1:23", "0:40"]) == (40.0, 83.0, "reversed times")
    assert interval([1, 2]) == (1.0, 2.0, "")
    assert interval([1]) is None and interval("1:2") is None and interval(["x", 2]) is None


@given(st.integers(0, 100_000))
def test_clock_text_reads_back(value):
    assert seconds(clock_text(value)) == value


def test_schema_subset():
    schema = {
        "type": "object",
        "properties": {
            "x": {"enum": ["a", "b"]},
            "y": {"type": "array", "minItems": 2, "maxItems": 2},
        },
    }
    assert not violations({"x": "a", "y": [1, 2]}, schema)
    assert violations({"x": "c"}, schema) and violations({"y": [1]}, schema) and violations({"y": [1, 2, 3]}, schema)  # fmt: skip
    assert violations("text", schema) and violations({"s": ""}, {"properties": {"s": {"type": "string", "minLength": 1}}})  # fmt: skip
    assert jsonish.violations(1, {"type": ["string", "number"]}) == []
