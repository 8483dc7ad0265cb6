"""`--summary`: what is counted is what took place, in the kernel and in user space."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ig import buckets, c_text
from tests.host.gadget_package import install, started
from tests.host.namespace import Namespace, stop_programs
from tests.host.waiting import PATIENCE, until

BUCKET_PROGRAM = """
#include <stdint.h>
#include <stdio.h>
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
#include "buckets.h"

int main(void)
{
	unsigned long long value;

	while (scanf("%llu", &value) == 1)
		printf("%u\\n", bucket_of(value));
	return 0;
}
"""


def buckets_in_c(folder: Path, values: Sequence[int]) -> list[int]:
    """Return the buckets of numbers by the function of the BPF programs."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, program = folder / "buckets.c", folder / "buckets"
    source.write_text(BUCKET_PROGRAM)
    subprocess.run([compiler, "-I", c_text.folder(), "-o", program, source], check=True)
    given = "\n".join(map(str, values))
    done = subprocess.run([program], input=given, capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


@pytest.mark.anywhere
def test_buckets_of_the_programs_are_those_of_python(tmp_path: Path) -> None:
    drawn = random.Random(19)
    values = [*range(300), *(drawn.getrandbits(drawn.randint(1, 64)) for _ in range(10_007))]
    values += [(1 << power) - below for power in range(5, 65) for below in (1, 2)]
    found = buckets_in_c(tmp_path, values)
    assert found == list(map(buckets.index, values))
    assert c_text.read("buckets.h").count(f"#define BUCKETS {max(found) + 1}\t") == 1


OFFERS = "[ig.gadgets]\ncounts = counts:GADGET\n"
MODULE = """
from dataclasses import replace

from ig.columns import TIMESTAMP, enum_names, integer, named, owner_columns
from ig.gadget import Column
from ig.gadgets import trace_tcp
from ig.summary import counted

NUMBERS = ("sport", "dport", "bucket", "count", "retransmits", "sent", "received", "max_latency")
ENUMS = ("type", "outcome", "direction")

GADGET = replace(
    counted(trace_tcp.GADGET),
    name="trace_counts",
    command=("trace", "counts"),
    columns=(
        TIMESTAMP,
        *owner_columns(),
        *map(integer, ("netns", "other"), ("netns", "other")),
        *(integer(name, name) for name in NUMBERS),
        *(Column(name, name, read=named(name, enum_names("tcp.h", name))) for name in ENUMS),
        integer("first", "first", "min_time"),
        integer("last", "last", "max_time"),
    ),
    views=(),
)
"""
ATTEMPTS, REFUSED = 17, 5


def total(rows: Iterable[Mapping[str, Any]], *names: str) -> Counter[tuple[Any, ...]]:
    """Return the sums of counts by these keys."""
    sums: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        sums[tuple(row[name] for name in names)] += row["count"]
    return sums


def test_program_counts_attempts_accepts_and_closes_instead_of_events(
    tmp_path: Path, namespace: Namespace
) -> None:
    package = install(tmp_path, "counts", OFFERS, {"__init__.py": MODULE})
    ready = tmp_path / "ready"
    chosen = ("--host", "-F", f"netns=={namespace.inode}", "-o", "json", "--ready-file", ready)
    process = started(package, "trace", "counts", *chosen)
    until(lambda: ready.exists() or process.poll() is not None, "the trace to be ready")
    before = time.time_ns()
    port = namespace.serve()
    namespace.connect("127.0.0.1", port, "--count", ATTEMPTS)
    namespace.connect("127.0.0.1", 1, "--count", REFUSED)
    stop_programs()
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=PATIENCE)
    assert errors == ""
    rows = [json.loads(line) for line in said.splitlines()]
    assert total(rows, "type", "outcome", "direction", "sport", "dport") == {
        ("CONNECT", "DONE", "OUTGOING", 0, port): ATTEMPTS,
        ("CONNECT", "REFUSED", "OUTGOING", 0, 1): REFUSED,
        ("ACCEPT", "DONE", "INCOMING", port, 0): ATTEMPTS,
        ("CLOSE", "NONE", "OUTGOING", 0, port): ATTEMPTS,
        ("CLOSE", "NONE", "INCOMING", port, 0): ATTEMPTS,
    }
    assert len(rows) == len(total(rows, "type", "outcome", "sport", "dport", "bucket"))
    for row in rows:
        assert row["bucket"] == buckets.index(row["max_latency"])
        assert (row["bucket"] > 0) == (row["type"] != "ACCEPT")
        assert before < row["first"] <= row["last"] < row["timestamp_raw"]
        assert (row["retransmits"], row["other"]) == (0, 0)
