"""Several values of a key become one: of processors, or of rows."""

from ig import c_text
from ig.bpf.aggregates import combine, combine_keys

TEXT = """
struct value {
	u64 packets, max_length;
	u32 buckets[4];
	u64 max_by_kind[2];
	u64 min_time;
};
"""


def test_values_are_added_up_or_their_largest_is_taken_each_number_of_an_array_by_itself() -> None:
    layout = c_text.parse(TEXT, "value", arrays=True)
    values = [(1, 20, *(1, 2, 3, 4), *(5, 6), 7), (10, 2, *(1, 0, 0, 1), *(1, 9), 6)]
    assert combine(layout, values) == (11, 20, (2, 2, 3, 5), (5, 9), 6)
    assert combine(layout, values[:1]) == (1, 20, (1, 2, 3, 4), (5, 6), 7)


def test_elements_of_a_key_in_several_epochs_are_one_row() -> None:
    layout = c_text.parse(TEXT, "value", arrays=True)
    one, other = (1, 20, *(1, 2, 3, 4), *(5, 6), 7), (10, 2, *(1, 0, 0, 1), *(1, 9), 6)
    elements = [((7, b"a"), [one]), ((7, b"b"), [other]), ((7, b"a"), [other])]
    assert combine_keys(layout, elements) == [
        ((7, b"a"), (11, 20, (2, 2, 3, 5), (5, 9), 6)),
        ((7, b"b"), (10, 2, (1, 0, 0, 1), (1, 9), 6)),
    ]


def test_smallest_value_is_not_that_of_a_processor_that_has_none() -> None:
    layout = c_text.parse("struct value {\n\tu64 min_time;\n};\n", "value", arrays=True)
    assert combine(layout, [(0,), (9,), (7,)]) == (7,)
    assert combine(layout, [(0,), (0,)]) == (0,)
