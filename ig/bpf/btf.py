"""Layouts of kernel structs, read from the running kernel's BTF through libbpf.

A program declares `KERNEL_STRUCT(sock, sk_err, …)` and gets a `struct sock` with only those
fields, at the offsets and of the types of the running kernel. A field that this kernel does not
have is omitted; each other one has a macro `HAVE_sock_sk_err`. The size of the whole struct in
bytes is `SIZE_sock`.
Source: Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import array
import ctypes
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ig.bpf.syscalls import library
from ig.errors import KernelRefused

INT, PTR, ARRAY, STRUCT, UNION, ENUM, _FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNCTION, _PROTOTYPE, _VARIABLE, _SECTION, _FLOAT, _DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)
_TRANSPARENT = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)
_OLDER = {_DECL_TAG: _VARIABLE, TYPE_TAG: CONST, ENUM64: UNION}
_WORDS_MORE = {INT: 1, ARRAY: 3, _VARIABLE: 1, _DECL_TAG: 1}
_WORDS_EACH = {STRUCT: 3, UNION: 3, ENUM: 2, _PROTOTYPE: 2, _SECTION: 3, ENUM64: 3}
KERNEL_CALL = 1 << 30
"""Marks the BTF id of a kernel's function in place of a helper's number: see attach.py."""
VMLINUX = Path("/sys/kernel/btf/vmlinux")
_STRUCT_REQUEST = re.compile(r"^KERNEL_STRUCT\(([^)]*)\)", re.M)
_TRACEPOINT_REQUEST = re.compile(r"^KERNEL_TRACEPOINT\(([^)]*)\)", re.M)
_OPTIONAL_REQUEST = re.compile(r"^OPTIONAL_STRUCT\(([^)]*)\)", re.M)
_FUNCTION_REQUEST = re.compile(r"^KERNEL_FUNCTION\(([^)]*)\)", re.M)
_CASES_REQUEST = re.compile(r"^KERNEL_CASES\(([^)]*)\)", re.M)
_ENUM_REQUEST = re.compile(r"^KERNEL_ENUM\(([^)]*)\)", re.M)


class _Type(ctypes.Structure):
    _fields_ = [
        ("name_off", ctypes.c_uint32),
        ("info", ctypes.c_uint32),
        ("size_or_type", ctypes.c_uint32),
    ]


class _Triple(ctypes.Structure):
    """A member (name, type, offset) or an array (type, index type, elements)."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("first", "second", "third")]


class Type:
    """One BTF type with typedefs and qualifiers stripped."""

    def __init__(self, btf: Btf, type_id: int) -> None:
        while True:
            self.address: int = library().btf__type_by_id(btf.handle, type_id)
            header = _Type.from_address(self.address)
            self.kind = header.info >> 24 & 0x1F
            if self.kind not in _TRANSPARENT:
                break
            type_id = header.size_or_type
        self.name = btf.string(header.name_off)
        self.count = header.info & 0xFFFF
        self.has_bits = bool(header.info >> 31)
        self.size = self.target = header.size_or_type

    def triples(self) -> Iterator[_Triple]:
        """Yield the member records that follow the type's header."""
        size = ctypes.sizeof(_Triple)
        for index in range(self.count):
            yield _Triple.from_address(self.address + ctypes.sizeof(_Type) + size * index)


def downgrade_for_old_libbpf(data: bytes) -> bytes:
    """Return BTF without the kinds of types that libbpf before 1.0 refuses.

    Each becomes an older one of the same length: a type's tag a const, a declaration's tag a
    variable, an enum of 64 bits a union. Raises ValueError for kinds that are newer still, and
    struct.error for what has no BTF's header.
    Source: Documentation/bpf/btf.rst.
    """
    header, offset, length = struct.unpack_from("=4xIII", data)
    begin, end = header + offset, header + offset + length
    words = array.array("I", data[begin:end])
    at = 0
    while at + 1 < len(words):
        kind, count = words[at + 1] >> 24 & 0x1F, words[at + 1] & 0xFFFF
        if not INT <= kind <= ENUM64:
            raise ValueError(f"BTF has types of kind {kind}")
        if kind in _OLDER:
            words[at + 1] ^= (kind ^ _OLDER[kind]) << 24
        at += 3 + _WORDS_MORE.get(kind, 0) + _WORDS_EACH.get(kind, 0) * count
    return data[:begin] + words.tobytes() + data[end:]


def _is_error(handle: int | None) -> bool:
    return not handle or handle > 2**64 - 4096  # libbpf before 1.0 gives the error as a pointer


class Btf:
    """The running kernel's types, or those in `data`. Raises KernelRefused where there are none."""

    def __init__(self, data: bytes | None = None) -> None:
        # libbpf must not print to stderr; the error is reported below.
        previous = library().libbpf_set_print(None)
        self.handle: int | None = None
        if data is None:
            self.handle = library().btf__load_vmlinux_btf()
        if _is_error(self.handle):
            with suppress(OSError, ValueError, struct.error):
                older = downgrade_for_old_libbpf(VMLINUX.read_bytes() if data is None else data)
                self.handle = library().btf__new(older, len(older))
        library().libbpf_set_print(previous)
        if _is_error(self.handle):
            raise KernelRefused(
                "Cannot read the kernel's type information (BTF).",
                f"Tried {VMLINUX}.",
                "Use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distribution kernels are; "
                "`ig snapshot socket` works without BTF.",
            )

    def string(self, offset: int) -> str:
        """Return the string at an offset of BTF's string section."""
        text: bytes = library().btf__name_by_offset(self.handle, offset)
        return text.decode()

    def find(self, name: str, kind: int) -> Type | None:
        """Return the type of that name and kind, None if this kernel has none."""
        type_id = self.find_id(name, kind)
        return Type(self, type_id) if type_id else None

    def find_id(self, name: str, kind: int) -> int:
        """Return the id of the type of that name and kind, 0 if this kernel has none."""
        return max(0, int(library().btf__find_by_name_kind(self.handle, name.encode(), kind)))

    def members(self, of: Type, base: int = 0) -> Iterator[tuple[str, int, int, int]]:
        """Yield (name, offset in bits, bit-field's width, type id), through anonymous members."""
        for member in of.triples():
            offset = member.third & 0xFFFFFF if of.has_bits else member.third
            width = member.third >> 24 if of.has_bits else 0
            if name := self.string(member.first):
                yield name, base + offset, width, member.second
            else:
                yield from self.members(Type(self, member.second), base + offset)

    def declaration(self, type_id: int, field: str, known: Iterable[str]) -> str:
        """Return C text that declares `field`, by its type or at least its size."""
        found = Type(self, type_id)
        if found.kind == PTR:
            target = Type(self, found.target) if found.target else None
            named = target is not None and target.kind == STRUCT and target.name
            return f"struct {target.name} *{field}" if target and named else f"void *{field}"
        if found.kind == ARRAY:
            array = _Triple.from_address(found.address + ctypes.sizeof(_Type))
            return self.declaration(array.first, f"{field}[{array.third}]", known)
        if found.kind in (INT, ENUM, ENUM64):
            return f"u{found.size * 8} {field}"
        if found.kind == STRUCT and found.name in known:
            return f"struct {found.name} {field}"
        if found.kind == STRUCT and not found.name:
            members = [m for m in self.members(found) if not m[2]]
            return f"struct {{ {self._union(members, known)} }} {field}"
        return f"u8 {field}[{found.size}]"

    def _union(self, members: Sequence[tuple[str, int, int, int]], known: Iterable[str]) -> str:
        """Return a union whose alternatives each hold one member behind its padding."""
        parts = [
            f"struct {{ u8 before_{name}[{offset // 8}]; "
            f"{self.declaration(type_id, name, known)}; }};"
            for name, offset, _, type_id in members
        ]
        return "union { " + " ".join(parts) + " };"

    def declare(self, program: str) -> str:
        """Return C declarations of what `program` asks for by KERNEL_STRUCT, _ENUM, _FUNCTION, …

        Raises KernelRefused for a struct that this kernel does not have.
        """
        wanted: dict[str, list[str]] = {}
        for name, *fields in _requests(_STRUCT_REQUEST, program):
            wanted.setdefault(name, []).extend(f for f in fields if f not in wanted.get(name, []))
        for name, *fields in _requests(_OPTIONAL_REQUEST, program):
            if self.find_id(name, STRUCT):
                wanted[name] = fields
        lines = [f"struct {name};" for name in wanted]
        for name, fields in _embedded_first(self, wanted):
            lines += self._declare_struct(name, fields, wanted)
        for name, *values in _requests(_ENUM_REQUEST, program):
            lines += self._declare_enum(name, values)
        for name, prefix, *values in _requests(_CASES_REQUEST, program):
            lines.append(self._declare_cases(name, prefix, values))
        for names in _requests(_TRACEPOINT_REQUEST, program):
            for name in names:
                count = self._arguments(name)
                lines.append(f"#define HAVE_tracepoint_{name} {count is not None:d}")
                lines.append(f"#define ARGUMENTS_tracepoint_{name} {count or 0}")
        for names in _requests(_FUNCTION_REQUEST, program):
            ids = {name: self.find_id(name, FUNCTION) for name in names}
            lines += [
                f"#define KERNEL_FUNCTION_{name} {KERNEL_CALL | number if number else 0}"
                for name, number in ids.items()
            ]
        return "\n".join(lines) + "\n"

    def _arguments(self, tracepoint: str) -> int | None:
        """Return how many arguments a tracepoint's programs have, None if there is none."""
        found = self.find(f"btf_trace_{tracepoint}", TYPEDEF)  # a pointer to a function's type
        return Type(self, found.target).count - 1 if found else None  # the first one is the trace's

    def _declare_struct(
        self, name: str, fields: Sequence[str], wanted: Mapping[str, Sequence[str]]
    ) -> Iterator[str]:
        found = self.find(name, STRUCT)
        if found is None:
            raise KernelRefused(
                f"The kernel's type information has no struct {name}.",
                "The BPF program needs it.",
                "Please report this with the output of `uname -r`.",
            )
        members = {member[0]: member for member in self.members(found)}
        present = [members[field] for field in fields if field in members]
        for field, offset, width, _ in present:
            yield f"#define HAVE_{name}_{field} 1"
            if width:
                yield f"#define BIT_OFFSET_{name}_{field} {offset}"
        plain = [member for member in present if not member[2]]
        yield f"#define SIZE_{name} {found.size}"
        yield f"struct {name} {{ {self._union(plain, wanted) if plain else ''} }};"
        for field, offset, _, _ in plain:
            place = f"__builtin_offsetof(struct {name}, {field}) == {offset // 8}"
            yield f'_Static_assert({place}, "{name}.{field} is not aligned");'

    def enum(self, name: str) -> Mapping[str, int]:
        """Return the values of an enum by their names, none if this kernel does not have it."""
        found = self.find(name, ENUM)
        if found is None:
            return {}
        begin = found.address + ctypes.sizeof(_Type)
        # struct btf_enum: name offset, value.
        pairs = (ctypes.c_uint32 * 2 * found.count).from_address(begin)
        return {self.string(offset): number for offset, number in pairs}

    def _declare_enum(self, name: str, values: Sequence[str]) -> Iterator[str]:
        for value, number in self.enum(name).items():
            if value in values:
                yield f"#define KERNEL_{value} {number}"

    def _declare_cases(self, name: str, prefix: str, values: Sequence[str]) -> str:
        numbers = self.enum(name)
        cases = [
            f"case {numbers[prefix + value]}: return {value};"
            for value in values
            if prefix + value in numbers
        ]
        return f"#define CASES_{name} {' '.join(cases)}\n#define HAVE_enum_{name} {bool(numbers):d}"


def _requests(pattern: re.Pattern[str], program: str) -> Iterator[list[str]]:
    for match in pattern.finditer(program):
        yield [word.strip() for word in match[1].split(",")]


def _embedded_first(btf: Btf, wanted: Mapping[str, list[str]]) -> list[tuple[str, list[str]]]:
    """Order the structs so that one that stands inside another comes before it."""
    ordered: dict[str, list[str]] = {}

    def add(name: str) -> None:
        if name in ordered or name not in wanted:
            return
        found = btf.find(name, STRUCT)
        for field, _, _, type_id in btf.members(found) if found else ():
            if field in wanted[name]:
                inner = Type(btf, type_id)
                if inner.kind == STRUCT:
                    add(inner.name)
        ordered[name] = wanted[name]

    for name in wanted:
        add(name)
    return list(ordered.items())
