"""The C text of the programs, and what Python shares with it: the layouts of records, and enums.

The C struct is the wire format: its fields' names are the columns', the filters' and JSON's.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import re
import stat
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ig.errors import IgError

_INCLUDE = r'(?m)^#include "([\w.]+)"$'
_ENUM = r"^enum %s \{([^}]*)\}"
_BODY = r"^struct %s \{\n(.*?)^\};"
_COMMENT = r"(?s)/\*.*?\*/"
_FIELD = r"(?:(struct)\s+)?(\w+)\s+([^;]+);"
_DECLARATOR = r"(\w+)((?:\[\w+\])*)$"
_CONSTANT = r"^#define %s (\d+)$"
_LOSS = r'(?m)^LOSS\((\w+), "([^"]*)"\)'
_CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "s32": "i", "s64": "q", "char": "s"}


def folder() -> Path:
    """Return the folder of the C files: the installed one, else the checkout's."""
    installed = Path(__file__).parent / "ebpf"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "ebpf"


@functools.cache
def read(program: str) -> str:
    """Return a program's text with the headers put in place of their #include lines.

    `program` is a file of our folder, or the path of another package's file; its headers are
    those beside it, or ours. Raises OSError.
    """
    path = folder() / program

    def included(match: re.Match[str]) -> str:
        beside = path.with_name(match[1])
        return read(str(beside) if path.parent != folder() and beside.exists() else match[1])

    text = re.sub(_INCLUDE, included, path.read_text("utf-8"))
    return f'#line 1 "{program}"\n{text}'


def enum(text: str, name: str) -> Mapping[str, int]:
    """Return the values of `enum name` in C text. Raises ValueError for one that is not there."""
    body = re.search(_ENUM % re.escape(name), re.sub(_COMMENT, "", text), re.M)
    if body is None:
        raise ValueError(f"no enum {name} in the program")
    values: dict[str, int] = {}
    following = 0
    for entry in filter(None, map(str.strip, body[1].split(","))):
        member, _, value = (part.strip() for part in entry.partition("="))
        values[member] = values[value] if value in values else int(value or following)
        following = values[member] + 1
    return values


def losses(text: str) -> Mapping[str, str]:
    """Return the causes of losses that C text declares, and how each is reported, in order.

    A cause's place is its number. Raises ValueError for one that is declared twice.
    """
    declared = re.findall(_LOSS, text)
    for name, words in declared:
        if sum(name == other[0] or words == other[1] != "" for other in declared) > 1:
            raise ValueError(f"LOSS({name}) is declared twice, or in the words of another")
    return dict(declared)


class Layout(NamedTuple):
    """A record: the names of its fields, in order, and the format that unpacks them."""

    names: tuple[str, ...]
    format: str
    """For the struct module, native byte order, no padding."""
    counts: tuple[int, ...] = ()
    """How many numbers each field has, 0 for one that is no array of numbers."""

    @property
    def size(self) -> int:
        """Bytes of one record."""
        return struct.calcsize("=" + self.format)


@functools.cache
def parse(text: str, name: str = "event", arrays: bool = False) -> Layout:
    """Read `struct name` from C text; nested ones are flattened, arrays of u8 and char are bytes.

    With `arrays`, it may have arrays of other numbers. Raises ValueError for what no record may
    have: a hole, a bit-field, an unknown type.
    """
    names: list[str] = []
    formats: list[str] = []
    counts: list[int] = []
    offset = 0
    for field, code, size, alignment in _fields(re.sub(_COMMENT, "", text), name):
        if array := re.fullmatch(r"(\d+)[^s]", code):
            if not arrays:
                raise ValueError(f"struct {name}: only bytes may be arrays, not {field}")
            counts.append(int(array[1]))
        else:
            counts.append(0)
        if offset % alignment:
            raise ValueError(f"struct {name} has a hole before {field}")
        offset += size
        names.append(field)
        formats.append(code)
    if offset % 8:
        raise ValueError(f"struct {name} has a hole at its end")
    return Layout(tuple(names), "".join(formats), tuple(counts))


def _fields(
    text: str, name: str, within: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, int, int]]:
    """Yield (name, format code, bytes, alignment) of each field."""
    if name in within:
        raise ValueError(f"struct {name} is within itself")
    body = re.search(_BODY % re.escape(name), text, re.M | re.S)
    if body is None:
        raise ValueError(f"no struct {name} in the program")
    for nested, kind, declarators in re.findall(_FIELD, body[1]):
        if nested:
            yield from _fields(text, kind, (*within, name))
            continue
        if kind not in _CODES:
            raise ValueError(f"struct {name}: unknown type {kind}")
        size = struct.calcsize("=" + _CODES[kind])
        for declarator in declarators.split(","):
            match = re.match(_DECLARATOR, declarator.strip())
            if match is None:
                raise ValueError(f"struct {name}: cannot read {declarator.strip()!r}")
            count = 1
            for dimension in re.findall(r"\w+", match[2]):
                constant = re.search(_CONSTANT % dimension, text, re.M)
                count *= int(constant[1] if constant else dimension)
            code = _CODES[kind]
            if match[2]:
                code = f"{count}s" if size == 1 else f"{count}{code}"
            yield match[1], code, size * count, size


def event(text: str) -> str:
    """Return the name of the struct that a program of events writes to the ring."""
    return "reported" if re.search(_BODY % "reported", text, re.M | re.S) else "event"


def need_trust(folder: Path) -> None:
    """Raise IgError unless only root, this user and the owner of this module may change a folder.

    That includes all that is in it, and what the folders above it hold in its place.
    """
    owners = frozenset({0, os.geteuid(), os.stat(__file__).st_uid})
    for path in (folder, *folder.rglob("*")):
        _need(path, owners, folder)
    for path in {*folder.absolute().parents, *folder.resolve().parents}:
        # In a sticky one nobody replaces what belongs to another (sticky(7)).
        _need(path, owners, folder, sticky=True)


def _need(path: Path, owners: Collection[int], folder: Path, sticky: bool = False) -> None:
    status = path.stat()
    writable = _others_write(path, status, owners)
    if status.st_uid in owners and not (
        writable and not (sticky and status.st_mode & stat.S_ISVTX)
    ):
        return
    raise IgError(
        f"The BPF programs in {folder} are not loaded: other users can modify them.",
        f"{path} belongs to uid {status.st_uid} and gid {status.st_gid} and has mode "
        f"{stat.S_IMODE(status.st_mode):04o}.",
        "Make it writable only by root (chown root, chmod go-w), or reinstall ig.",
    )


def _others_write(path: Path, status: os.stat_result, owners: Collection[int]) -> bool:
    """Return whether users other than the owners may write to a file."""
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    # With an access control list these bits are the most that it grants to anybody.
    if "system.posix_acl_access" in os.listxattr(path):
        return True
    members = _members(status.st_gid)
    return members is None or not members <= set(owners)


@functools.cache
def _members(group: int) -> frozenset[int] | None:
    """Return the uids of a group's members, None if there is no such group.

    Many distributions give each user a group of its own, and let it write to the user's files.
    """
    if group == 0:
        return frozenset({0})
    try:
        names = grp.getgrgid(group).gr_mem
        return frozenset(
            each.pw_uid for each in pwd.getpwall() if each.pw_gid == group or each.pw_name in names
        )
    except KeyError:
        return None
