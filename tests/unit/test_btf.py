"""The kernel's types: what this kernel has is declared where it is, the rest is left out."""

import re
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig.bpf.btf import STRUCT, VMLINUX, Btf, downgrade_for_old_libbpf
from ig.bpf.contract import source
from ig.errors import KernelRefused

if not VMLINUX.exists():
    pytest.skip("this kernel shows no types", allow_module_level=True)


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf()


def offsets(declaration: str, struct: str) -> dict[str, int]:
    """Return the bytes before each field of a declared struct."""
    line = re.search(rf"^struct {struct} \{{ (.*)$", declaration, re.M)
    assert line
    return {name: int(size) for name, size in re.findall(r"u8 before_(\w+)\[(\d+)\]", line[1])}


def test_fields_stand_where_the_kernel_has_them(btf: Btf) -> None:
    said = btf.declare("KERNEL_STRUCT(sock_common, skc_daddr, skc_rcv_saddr, skc_dport, skc_num)")
    # `struct sock_common` begins so since 3.9 (ce43b03e8889): both addresses, a hash, both ports.
    assert offsets(said, "sock_common") == {
        "skc_daddr": 0,
        "skc_rcv_saddr": 4,
        "skc_dport": 12,
        "skc_num": 14,
    }
    assert "#define HAVE_sock_common_skc_num 1" in said


def test_field_that_the_kernel_does_not_have_is_left_out(btf: Btf) -> None:
    said = btf.declare("KERNEL_STRUCT(sock_common, skc_num, skc_no_such_thing)")
    assert "no_such_thing" not in said
    assert set(offsets(said, "sock_common")) == {"skc_num"}


def test_cases_are_of_the_values_that_the_kernel_has(btf: Btf) -> None:
    said = btf.declare("KERNEL_CASES(bpf_func_id, BPF_FUNC_, map_lookup_elem, no_such_thing)")
    assert "#define CASES_bpf_func_id case 1: return map_lookup_elem;\n" in said
    assert "#define HAVE_enum_bpf_func_id 1" in said
    assert "#define HAVE_enum_no_such_enum 0" in btf.declare("KERNEL_CASES(no_such_enum, A_, b)")


def test_struct_that_the_kernel_does_not_have_is_refused_by_name(btf: Btf) -> None:
    with pytest.raises(KernelRefused, match="no struct no_such_thing"):
        btf.declare("KERNEL_STRUCT(no_such_thing, field)")


def test_struct_that_stands_inside_another_comes_before_it(btf: Btf) -> None:
    said = btf.declare("KERNEL_STRUCT(sock, __sk_common)\nKERNEL_STRUCT(sock_common, skc_num)")
    assert said.index("struct sock_common { ") < said.index("struct sock { ")


@pytest.mark.parametrize("program", ["tcp_why.c", "bind.c"])
def test_libbpf_before_1_0_gets_kinds_that_it_knows_and_finds_the_same(
    btf: Btf, program: str
) -> None:
    older = Btf(downgrade_for_old_libbpf(VMLINUX.read_bytes()))
    assert older.declare(source(program)) == btf.declare(source(program))


def header_of(types: bytes, strings: bytes) -> bytes:
    lengths = (24, 0, len(types), len(types), len(strings))
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, *lengths)


def test_in_older_kinds_tags_and_wide_enums_have_the_same_length() -> None:
    words = [
        *(1, 14 << 24, 2, 1),  # a variable, then what has become the like of it
        *(2, 17 << 24, 1, 0xFFFFFFFF),
        *(0, 18 << 24, 1),
        *(3, 19 << 24 | 1 << 31 | 2, 8, *(4, 1, 0), *(5, 2, 0)),
        *(0, 10 << 24, 1),
    ]
    types, strings = struct.pack(f"={len(words)}I", *words), b"\0name"
    header = header_of(types, strings)
    older = downgrade_for_old_libbpf(header + types + strings)
    assert older[:24] == header
    assert older[-len(strings) :] == strings
    changed = {5: 14 << 24, 9: 10 << 24, 12: 5 << 24 | 1 << 31 | 2}
    expected = [changed.get(at, word) for at, word in enumerate(words)]
    assert list(struct.unpack(f"={len(words)}I", older[24 : -len(strings)])) == expected


def test_kinds_that_nobody_knows_are_refused() -> None:
    types = struct.pack("=3I", 0, 20 << 24, 0)
    with pytest.raises(ValueError, match="kind 20"):
        downgrade_for_old_libbpf(header_of(types, b"") + types)


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_types_fail_in_no_other_way(data: bytes) -> None:
    with suppress(KernelRefused):
        Btf(data)


@given(text=st.text(max_size=40), field=st.text("abcskc_num,() \n\0é", max_size=30))
def test_no_request_makes_it_fail_otherwise(text: str, field: str) -> None:
    said = ""
    with suppress(KernelRefused):
        said = Btf().declare(f"KERNEL_STRUCT({text}, {field})\nKERNEL_ENUM({field}, {text})")
    assert said == "" or said.endswith("\n")


def test_every_struct_of_the_network_can_be_declared(btf: Btf) -> None:
    for name in ("sock", "tcp_sock", "inet_sock", "net", "task_struct", "cgroup"):
        found = btf.find(name, STRUCT)
        assert found
        fields = ", ".join(member[0] for member in btf.members(found))
        declared = offsets(btf.declare(f"KERNEL_STRUCT({name}, {fields})"), name)
        assert max(declared.values()) < found.size


def test_tracepoint_has_its_number_of_arguments(btf: Btf) -> None:
    said = btf.declare("KERNEL_TRACEPOINT(inet_sock_set_state, no_such_thing)")
    # The socket, its old state and its new one, since 4.16.
    assert "#define HAVE_tracepoint_inet_sock_set_state 1" in said
    assert "#define ARGUMENTS_tracepoint_inet_sock_set_state 3" in said
    assert "#define HAVE_tracepoint_no_such_thing 0" in said
    assert "#define ARGUMENTS_tracepoint_no_such_thing 0" in said
