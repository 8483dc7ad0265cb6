"""Layouts of records: read from C text as a compiler lays them out, or refused."""

import re
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ig import c_text
from ig.bpf.contract import source
from ig.bpf.session import ring_full
from ig.gadgets import declared

RECORD = """
struct inner { /* a struct; that is nested */
	u32 number;
	u32 other;
};
"""
NESTED = """
struct owner {
	u32 pid;
	char comm[4];
};

#define LENGTH 3
struct event {
	u64 timestamp;	/* ns; since boot */
	struct owner owner;
	s32 fd, accept_fd;
	u8 address[2][LENGTH];
	u16 port;
};
"""
WORDS = ("struct event {\n", "struct inner {\n", "struct inner x;", "u64 a;", "u8 b[8];", "};\n")


def test_fields_are_flattened_in_their_order() -> None:
    found = c_text.parse(NESTED)
    assert found.names == (*("timestamp", "pid", "comm", "fd", "accept_fd", "address", "port"),)
    assert found.format == "QI4sii6sH"
    assert found.size == 8 + 8 + 8 + 8


@pytest.mark.parametrize("gadget", [g for g in declared().values() if g.program])
def test_programs_records_begin_with_their_time_and_have_no_hole(gadget: object) -> None:
    found = c_text.parse(source(gadget.program))  # type: ignore[attr-defined]
    assert found.names[0] == "timestamp"
    assert found.size % 8 == 0
    assert len(set(found.names)) == len(found.names)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ("u32 a; u64 b;", "hole before b"),
        ("u64 a; u32 b;", "hole at its end"),
        ("u32 a : 3;", "cannot read"),
        ("u32 a[2];", "only bytes"),
        ("float a;", "unknown type"),
        ("struct nobody a;", "no struct nobody"),
        ("struct event a;", "within itself"),
        ("u8 a[NOBODY];", "NOBODY"),
    ],
)
def test_what_no_record_may_have_is_refused(fields: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        c_text.parse(f"struct event {{\n{fields}\n}};")


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=20), max_size=30).map("".join))
@example("struct event {\nstruct inner x;\n};\nstruct inner {\nstruct event y;\n};\n")
@example("struct event {\nu8 a[" + "9" * 5000 + "];\n};\n")
def test_any_text_has_a_layout_or_none(text: str) -> None:
    found = None
    with suppress(ValueError):
        found = c_text.parse(text)
    assert found is None or re.fullmatch(r"(\d*[BHIQiqs])*", found.format)


def test_enums_are_numbered_as_a_compiler_does() -> None:
    text = "enum kind { /* of C; a comment */ NONE, ONE, FOUR = 4, FIVE, LAST = FIVE, SIX };"
    values = {"NONE": 0, "ONE": 1, "FOUR": 4, "FIVE": 5, "LAST": 5, "SIX": 6}
    assert c_text.enum(text, "kind") == values
    with pytest.raises(ValueError, match="no enum other"):
        c_text.enum(text, "other")


def test_losses_are_numbered_in_their_order_and_declared_once() -> None:
    text = 'LOSS(ONE, "a thing")\nLOSS(NONE, "")\nLOSS(OTHER, "")\n'
    assert c_text.losses(text) == {"ONE": "a thing", "NONE": "", "OTHER": ""}
    assert next(iter(c_text.losses(source("tcp.c")).values())) == ring_full()
    for again in ('LOSS(ONE, "another")', 'LOSS(MORE, "a thing")'):
        with pytest.raises(ValueError, match="declared twice"):
            c_text.losses(f"{text}{again}\n")
