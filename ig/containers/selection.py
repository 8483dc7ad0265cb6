"""Choose containers by name, id, pod, namespace, label and runtime, and the host or not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate
from typing import NamedTuple

from ig.container import HOST, Container
from ig.errors import UsageError

_ID = r"[0-9a-f]{4,64}\Z"
"""What may be the beginning of an id: four digits at least, so that short names stay names."""
_REMEMBERED = 4096
"""How many containers' answers are remembered."""
_GLOB = "*?["


class _Matcher:
    """Patterns made ready: thousands cost as one does."""

    def __init__(self, patterns: Sequence[str]) -> None:
        globs = [each for each in patterns if not set(_GLOB).isdisjoint(each)]
        self._plain = frozenset(patterns) - frozenset(globs)
        self._search = re.compile("|".join(map(translate, globs))).match if globs else None
        self._beginnings = frozenset(each for each in self._plain if re.match(_ID, each))
        self._lengths = sorted({len(each) for each in self._beginnings})

    def fits(self, names: Sequence[str], identifier: str) -> bool:
        """Return whether any of the patterns is one of the names, or begins the id."""
        for name in names:
            plain = name.removeprefix("/")
            # An empty name is no name: not even `*` is meant to find it.
            if name and (plain in self._plain or (self._search and self._search(plain))):
                return True
        return any(identifier[:length] in self._beginnings for length in self._lengths)


class Patterns:
    """What names must be: any of `wanted`, if there are any, and none of `unwanted`."""

    def __init__(self, wanted: tuple[str, ...] = (), unwanted: tuple[str, ...] = ()) -> None:
        self.wanted = wanted
        self.unwanted = unwanted
        self._matchers = _Matcher(wanted), _Matcher(unwanted)
        self._known: dict[tuple[str, ...], bool] = {}

    def __bool__(self) -> bool:
        return bool(self.wanted or self.unwanted)

    def allow(self, names: Sequence[str], identifier: str = "") -> bool:
        """Say whether something with those names, and perhaps an id, is wanted."""
        key = (*names, identifier)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[key] = self._allowed(names, identifier)
        return known

    def _allowed(self, names: Sequence[str], identifier: str) -> bool:
        wanted, unwanted = self._matchers
        if self.unwanted and unwanted.fits(names, identifier):
            return False
        return not self.wanted or wanted.fits(names, identifier)


class Label(NamedTuple):
    """One requirement of a label: it has, or has not, a value; None is any value."""

    key: str
    value: str | None
    equal: bool = True

    def allows(self, container: Container) -> bool:
        """Say whether the container's labels are as required."""
        has = container.labels.get(self.key)
        return (has is not None if self.value is None else has == self.value) == self.equal


class Selection(NamedTuple):
    """Whose events are wanted.

    By default every container's and nothing of the host's. `host` adds the host's processes, also
    beside a choice of containers; `host_only` leaves nothing else. Everything that is given must
    hold. A container that no runtime reported passes `runtimes`, since it may be one of theirs
    that could not be asked; it has no pod and no labels.
    """

    names: Patterns = Patterns()
    pods: Patterns = Patterns()
    namespaces: Patterns = Patterns()
    labels: tuple[Label, ...] = ()
    runtimes: frozenset[str] = frozenset()
    host: bool = False
    host_only: bool = False

    @property
    def narrow(self) -> bool:
        """Whether some containers are not wanted."""
        return bool(
            self.names
            or self.pods
            or self.namespaces
            or self.labels
            or self.runtimes
            or self.host_only
        )

    @property
    def choosy(self) -> bool:
        """Whether a container is wanted for its name, pod or labels: a change may alter that."""
        return bool(self.names or self.pods or self.namespaces or self.labels)

    def wants(self, container: Container) -> bool:
        """Say whether events of the container, or of the host if it is HOST, are wanted."""
        if container is HOST or not container.id:
            return self.host or self.host_only
        if self.host_only:
            return False
        if self.runtimes and container.known and _asked(container) not in self.runtimes:
            return False
        return (
            self.names.allow((container.name, container.pod_container), container.id)
            and self.pods.allow((container.pod_name,))
            and self.namespaces.allow((container.pod_namespace,))
            and all(label.allows(container) for label in self.labels)
        )


def select(
    names: Sequence[str] = (),
    *,
    pods: Sequence[str] = (),
    namespaces: Sequence[str] = (),
    selectors: Sequence[str] = (),
    runtimes: Iterable[str] = (),
    host: bool = False,
    host_only: bool = False,
) -> Selection:
    """Return the selection that command line options describe, each possibly with commas inside.

    A name may be a glob (`web-*`), be excluded (`!web`), carry Docker's leading slash, or be the
    first four or more digits of an id. A selector is `key=value`, `key!=value`, `key` (the label
    is there) or `!key` (it is not). Raises UsageError for what makes no sense.
    """
    selection = Selection(
        names=_patterns(names, "container name"),
        pods=_patterns(pods, "pod name"),
        namespaces=_patterns(namespaces, "namespace"),
        labels=tuple(_label(part) for part in _parts(selectors, "selector")),
        runtimes=frozenset(runtimes),
        host=host,
        host_only=host_only,
    )
    if host_only and selection.choosy:
        raise UsageError(
            "--host-only cannot be combined with a choice of containers.",
            remedy="Use --host to include processes of the host.",
        )
    return selection


def _asked(container: Container) -> str:
    """Return the name of the runtime that was asked: what answers may call itself otherwise."""
    return container.source.partition(" ")[0] or container.runtime


def _parts(values: Sequence[str], what: str) -> list[str]:
    parts = [part.strip() for value in values for part in value.split(",")]
    if not all(parts):
        raise UsageError(f"Empty {what} in {','.join(values)!r}.")
    return parts


def _patterns(values: Sequence[str], what: str) -> Patterns:
    wanted: list[str] = []
    unwanted: list[str] = []
    for part in _parts(values, what):
        excluded = part.startswith("!")
        name = part.removeprefix("!").removeprefix("/")
        if not name:
            raise UsageError(f"Missing {what} in {part!r}.")
        (unwanted if excluded else wanted).append(name)
    return Patterns(tuple(wanted), tuple(unwanted))


def _label(part: str) -> Label:
    if "=" in part:
        key, _, value = part.replace("==", "=", 1).partition("=")
        label = Label(key.removesuffix("!").strip(), value.strip(), not key.endswith("!"))
    else:
        label = Label(part.removeprefix("!").strip(), None, not part.startswith("!"))
    if not label.key:
        raise UsageError(f"Missing label name in {part!r}.", remedy="Use KEY=VALUE.")
    return label
