"""Say whose each event is: from its cgroup to a container, and back to the kernel's filter."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence

from ig.containers.container import HOST, UNKNOWN_RUNTIME, Container

Find = Callable[[Sequence[str]], tuple[Container, bool]]

UNKNOWN = Container(id="", name="", runtime=UNKNOWN_RUNTIME)
"""The owner where the kernel could not say in whose cgroup it was."""
_MOST_CGROUPS = 65536


class Attribution:
    """What is known of the cgroups that events came from.

    The answers are kept until the index changes; then those that changed are told to the kernel.
    """

    def __init__(
        self,
        find: Find,
        version: Callable[[], int],
        wants: Callable[[Container], bool],
        decide: Callable[[int, bool], None],
    ) -> None:
        self._find = find
        self._version = version
        self._wants = wants
        self._decide = decide
        self._seen_version = -1
        self._paths: OrderedDict[int, tuple[str, ...]] = OrderedDict()
        self._verdicts: dict[int, bool] = {}
        self._final: set[int] = set()
        self.owners: dict[int, Container] = {0: UNKNOWN}
        """The owner of each known cgroup."""

    def learn(self, cgroups: Iterable[tuple[int, tuple[str, ...]]]) -> None:
        """Take in the cgroups that the kernel told of, and whatever the runtimes told since."""
        for cgroup, path in cgroups:
            self._paths[cgroup] = path
            self._resolve(cgroup)
        while len(self._paths) > _MOST_CGROUPS:
            self._forget(next(iter(self._paths)))
        version = self._version()
        if version != self._seen_version:
            self._seen_version = version
            for cgroup in self._paths:
                self._resolve(cgroup)

    def undecided(self, cgroups: Collection[int]) -> set[int]:
        """Give those of the cgroups whose owner the kernel or a runtime may still tell."""
        return {cgroup for cgroup in cgroups if cgroup and cgroup not in self._final}

    def settle(self, cgroup: int) -> None:
        """Make do with what is known of a cgroup: nobody told in time."""
        self.owners.setdefault(cgroup, UNKNOWN)
        self._final.add(cgroup)
        self._tell(cgroup)

    def wanted(self, cgroups: Iterable[int]) -> dict[int, bool]:
        """Say of each cgroup whether its events are to be shown."""
        return {cgroup: self._wants(self.owners.get(cgroup, UNKNOWN)) for cgroup in cgroups}

    def _resolve(self, cgroup: int) -> None:
        owner, final = self._find(self._paths[cgroup])
        self.owners[cgroup] = owner
        if final:
            self._final.add(cgroup)
            self._tell(cgroup)
        elif owner.known and owner is not HOST:
            self._final.discard(cgroup)

    def _tell(self, cgroup: int) -> None:
        """Write the verdict if it is a new one; undecided cgroups pass, so keeping is free."""
        keep = self._wants(self.owners[cgroup])
        if keep != self._verdicts.get(cgroup, True):
            self._decide(cgroup, keep)
        self._verdicts[cgroup] = keep

    def _forget(self, cgroup: int) -> None:
        self._paths.pop(cgroup, None)
        self._verdicts.pop(cgroup, None)
        self._final.discard(cgroup)
        self.owners.pop(cgroup, None)
