"""The thread that goes from one network namespace to the next."""

from __future__ import annotations

import threading

import pytest

from ig.kernel import netns


def test_visit_raises_what_a_namespace_raised_after_the_results_before_it() -> None:
    here = netns.Namespace(netns.own())
    found: list[int] = []

    def act(namespace: netns.Namespace, entered: bool) -> int:
        assert entered
        if found:
            raise LookupError(namespace.id)
        found.append(namespace.id)
        return namespace.id

    results = netns.visit([here, here, here], act)
    assert next(results) == here.id
    with pytest.raises(LookupError):
        next(results)
    assert found == [here.id]


def test_visit_that_is_not_read_to_its_end_ends_its_thread() -> None:
    here = netns.Namespace(netns.own())
    before = threading.active_count()
    results = netns.visit([here] * 3, lambda namespace, _: namespace.id)
    assert next(results) == here.id
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
