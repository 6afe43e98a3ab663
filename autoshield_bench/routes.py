"""Gradient routes: the ways in which a white-box attack can pass a chain of stages backwards.

An adaptive attack does not know which gradient leads to the true worst case. So it takes them all: each stage by its
own gradient and by that of its surrogate (BPDA, Athalye et al. 2018, arXiv:1802.00420), and it searches on each prefix
of the chain and on the classifier alone as well. Whatever it finds is judged on the whole pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

GradientPath = Literal["exact", "bpda"]
"""How a stage is passed backwards: by its own gradient, or by that of its surrogate."""

LONGEST = 3
"""Stages up to which every combination of paths is tried."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """What of a stage matters to gradients."""

    component: str
    transforms: bool
    replaces: bool
    """Whether it puts another classifier in the place of the undefended one."""
    differentiable: bool

    @property
    def declared(self) -> GradientPath:
        """The path that its spec asks for."""
        return "exact" if self.differentiable else "bpda"


@dataclass(frozen=True, kw_only=True)
class Route:
    """One way to attack a pipeline."""

    name: str
    whole: bool
    """Whether the network that is searched has the forward pass of the whole pipeline."""
    components: tuple[str, ...]
    """Stages that take part."""
    paths: tuple[tuple[str, GradientPath], ...]
    """By component."""

    def to_json(self) -> list[Any]:
        """Return what of it goes into keys."""
        return [list(self.components), [list(pair) for pair in self.paths]]


def declared_route(links: Sequence[Link]) -> Route:
    """Return the one way that the stages declare."""
    return _whole(links, tuple(link.declared for link in links if link.transforms))


def all_routes(links: Sequence[Link]) -> tuple[Route, ...]:
    """Return every route, the declared one first: combinations of paths, then prefixes, then classifiers alone.

    Beyond ``LONGEST`` stages that transform images, only the declared combination and the two pure ones are tried.
    """
    moving = [link for link in links if link.transforms]
    declared = declared_route(links)
    both: tuple[GradientPath, GradientPath] = ("exact", "bpda")
    if len(moving) <= LONGEST:
        mixes = list(product(both, repeat=len(moving)))
    else:
        mixes = [(path,) * len(moving) for path in both]
    routes = [declared, *(route for mix in mixes if (route := _whole(links, mix)) != declared)]
    replacing = [link.component for link in links if link.replaces and not link.transforms]
    for kept in reversed(range(len(moving))):
        prefix = moving[:kept]
        components = [link.component for link in links if link in prefix or link.component in replacing]
        name = f"prefix of {kept}: {', '.join(components)}" if prefix else "classifier alone"
        paths = tuple((link.component, link.declared) for link in prefix)
        routes.append(Route(name=name, whole=False, components=tuple(components), paths=paths))
    if any(link.replaces for link in links):
        routes.append(Route(name="undefended classifier", whole=False, components=(), paths=()))
    return tuple(routes)


def enumerated(links: Sequence[Link]) -> bool:
    """Return whether ``all_routes`` holds every combination of paths."""
    return sum(link.transforms for link in links) <= LONGEST


def _whole(links: Sequence[Link], mix: Sequence[GradientPath]) -> Route:
    moving = [link.component for link in links if link.transforms]
    paths = tuple(zip(moving, mix, strict=True))
    name = ", ".join(f"{component} {path}" for component, path in paths) or "exact"
    return Route(name=name, whole=True, components=tuple(link.component for link in links), paths=paths)
