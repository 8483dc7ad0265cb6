"""Ways in which hosts set their kernels up, and the tests that must pass in each."""

from collections.abc import Mapping, Sequence

_SETUPS = "test_setups.py::test_"
_OWNERS = "test_trace_tcpconnect_owners.py::test_"
_OWNED = (
    f"{_OWNERS}containers_that_were_there_come_later_or_start_again_are_named",
    f"{_OWNERS}shared_network_does_not_change_the_owner",
)
_LOCKED = (
    f"{_SETUPS}kernel_that_lets_nobody_trace_is_named_as_the_reason",
    f"{_SETUPS}doctor_says_that_nobody_may_trace_and_sockets_are_shown",
)

SETUPS: Mapping[str, Sequence[str]] = {
    "lockdown=confidentiality": _LOCKED,
    "ig.lockdown=later": _LOCKED,
    "lockdown=integrity": (f"{_SETUPS}kernel_locked_down_for_integrity_is_traced_as_any",),
    "ig.btf=no": (
        f"{_SETUPS}kernel_without_types_is_reported_with_what_would_help",
        f"{_SETUPS}doctor_says_that_types_are_missing_in_its_own_words_and_sockets_are_shown",
    ),
    "ig.tracefs=no": (
        f"{_SETUPS}tracefs_that_is_not_mounted_is_not_needed_and_nothing_is_mounted",
    ),
    "ig.cgroup=v1": (
        f"{_SETUPS}cgroup_v1_alone_is_found_by_doctor_and_tracing_works",
        *_OWNED,
    ),
    "ig.cgroup=hybrid": (
        *_OWNED,
        "test_trace_cgroups.py::test_cgroups_in_either_hierarchy_identify_the_container",
    ),
    "ig.init=systemd": (
        "test_packaging_unit.py::test_unit_starts_comes_back_when_killed_reloads_and_stops",
        "test_packaging_unit.py::test_unit_exposes_little",
    ),
}
"""By the words for the kernel's command line: the tests to run. None of them may be skipped: a test
that finds its set-up missing would otherwise pass for one that found it right."""
