"""Ways in which hosts set their kernels up, and the tests that must pass in each."""

from collections.abc import Mapping, Sequence

_SETUPS = "test_setups.py::test_"
_OWNERS = "test_trace_tcpconnect_owners.py::test_"
_OWNED = (
    f"{_OWNERS}containers_that_were_there_come_later_or_start_again_are_named",
    f"{_OWNERS}a_shared_network_does_not_change_the_owner",
)
_LOCKED = (
    f"{_SETUPS}a_kernel_that_lets_nobody_trace_is_named_as_the_reason",
    f"{_SETUPS}where_nobody_may_trace_doctor_says_so_and_sockets_are_shown",
)

SETUPS: Mapping[str, Sequence[str]] = {
    "lockdown=confidentiality": _LOCKED,
    "ig.lockdown=later": _LOCKED,
    "lockdown=integrity": (f"{_SETUPS}a_kernel_locked_down_for_integrity_is_traced_as_any",),
    "ig.btf=no": (
        f"{_SETUPS}a_kernel_without_types_is_told_with_what_would_help",
        f"{_SETUPS}without_types_doctor_says_so_in_its_own_words_and_sockets_are_shown",
    ),
    "ig.tracefs=no": (f"{_SETUPS}where_tracefs_is_not_mounted_tracing_works_and_mounts_nothing",),
    "ig.cgroup=v1": (
        f"{_SETUPS}without_cgroup_v2_doctor_finds_cgroups_and_tracing_works",
        *_OWNED,
    ),
    "ig.cgroup=hybrid": _OWNED,
}
"""By the words for the kernel's command line: the tests to run. None of them may be skipped: a test
that finds its set-up missing would otherwise pass for one that found it right."""
