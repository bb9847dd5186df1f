"""Adapters: names, generations, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftwork.source import SourceLike

if TYPE_CHECKING:
    from graftwork.engine import Engine


@dataclass(frozen=True)
class AdapterInfo:
    """What is known of an adapter. Fields are those of gw_adapter_info."""

    name: str
    kind: str
    """Such as "lora"."""
    generation: int
    sites: int
    """Places of the model that it changes."""
    bytes: int
    """That it takes while it is in memory."""
    requests: int
    """How many times requests use it or wait for it."""
    resident: bool
    """It is in memory."""
    pinned: bool
    """It stays there."""
    loads: int
    """How many times it came into memory."""


class Adapter:
    """A name of an engine, and the generation that it had when this was made or last replaced.

    As a context manager, it is unloaded at the end.
    """

    def __init__(self, engine: Engine, name: str, generation: int) -> None:
        self._engine = engine
        self.name = name
        self.generation = generation

    def replace(self, source: SourceLike) -> int:
        """Gives the name to another adapter, if it still belongs to this generation; ConflictError if not."""
        self.generation = self._engine.replace_adapter(self.name, source, expected=self.generation)
        return self.generation

    def unload(self) -> None:
        """Frees the name. The memory goes with the last request that uses it."""
        self._engine.unload_adapter(self.name)

    def pin(self) -> None:
        """Keeps the adapter that the name means now in memory, until the name is freed, given to another, or unpinned."""
        self._engine.pin_adapter(self.name)

    def unpin(self) -> None:
        """Lets it leave memory when another needs room."""
        self._engine.pin_adapter(self.name, False)

    @property
    def info(self) -> AdapterInfo:
        """What is known of the adapter that the name means now."""
        return self._engine.adapter(self.name)

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *exception: Any) -> None:
        if not self._engine.closed:
            self.unload()

    def __repr__(self) -> str:
        return f"Adapter({self.name!r}, generation={self.generation})"
