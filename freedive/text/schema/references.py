"""Resolves the references of a JSON schema inside the same document."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

_NOT_SCHEMAS = frozenset({"enum", "const", "default", "example", "examples"})


MAX_LEVELS = 8
"""The longest chain of references that is followed."""


MAX_STEPS = 20_000
"""The most schemas that are visited, because a schema may refer to itself many times."""


class TooManySteps(Exception):
    """Following the references of a schema takes more than :data:`MAX_STEPS` steps."""


class UnknownReference(Exception):
    """A reference to a schema that is not in the document."""


class References:
    """Finds the targets of references in ``root``, and names them d0, d1 ..."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._resources: dict[str, Any] = {"": root}
        self._bases: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._pending: dict[str, Any] = {}
        self._num_steps = 0
        self._find_resources(root)

    def name(self, schema: Mapping[str, Any]) -> str:
        """Returns the name of the schema that ``schema`` refers to. Raises UnknownReference."""
        target = self._find(schema)
        if id(target) not in self._names:
            self._names[id(target)] = name = f"d{len(self._names)}"
            self._pending[name] = target
        return self._names[id(target)]

    def pending(self) -> dict[str, Any]:
        """Returns the targets that were named since the last call, by name."""
        pending, self._pending = self._pending, {}
        return pending

    def target(self, schema: Any) -> Any:
        """Returns ``schema``, or the target of its reference if it has no other keyword. Raises TooManySteps."""
        self._count()
        for _ in range(MAX_LEVELS):
            if not isinstance(schema, Mapping) or schema.keys() != {"$ref"}:
                return schema
            try:
                schema = self._find(schema)
            except UnknownReference:
                return schema
        return schema

    def parts(self, schema: Any, levels: int = MAX_LEVELS) -> list[Mapping[str, Any]]:
        """Returns ``schema``, the target of its reference, and the schemas of its allOf, all of which apply."""
        self._count()
        if not isinstance(schema, Mapping) or not levels:
            return []
        more = schema["allOf"] if isinstance(schema.get("allOf"), list) else []
        with contextlib.suppress(UnknownReference):
            more = [*more, *([self._find(schema)] if "$ref" in schema else [])]
        return [schema, *(part for item in more for part in self.parts(item, levels - 1))]

    def referred(self, schema: Mapping[str, Any]) -> Any:
        """Returns the target of the reference of ``schema``, None if there is none."""
        with contextlib.suppress(UnknownReference):
            return self._find(schema) if "$ref" in schema else None
        return None

    def merged(self, schema: Any) -> Any:
        """Returns ``schema`` merged over the target of its reference, or unchanged if it has no reference."""
        target = self.referred(schema) if isinstance(schema, Mapping) else None
        if target is None:
            return schema
        own = {key: value for key, value in schema.items() if key != "$ref"}
        return {**target, **own} if isinstance(target, Mapping) else target

    def _count(self) -> None:
        self._num_steps += 1
        if self._num_steps > MAX_STEPS:
            raise TooManySteps

    def _find(self, schema: Mapping[str, Any]) -> Any:
        reference = schema["$ref"]
        if not isinstance(reference, str):
            raise UnknownReference("has a $ref that is not a string")
        if "$id" in schema and schema is not self._root:
            raise UnknownReference("has both $ref and $id, whose meaning differs between drafts")
        uri, fragment = urldefrag(urljoin(self._bases.get(id(schema), ""), reference))
        fragment = unquote(fragment)
        found = self._resources.get(uri)
        if found is not None and fragment.startswith("/"):
            for part in fragment[1:].split("/"):
                part = part.replace("~1", "/").replace("~0", "~")
                if isinstance(found, list) and re.fullmatch("0|[1-9][0-9]{0,5}", part) and int(part) < len(found):
                    found = found[int(part)]
                elif isinstance(found, Mapping):
                    found = found.get(part)
                else:
                    found = None
        elif fragment:
            found = self._resources.get(f"{uri}#{fragment}")
        if not isinstance(found, bool | Mapping):
            raise UnknownReference(f"refers to {reference[:200]!r}, which is not a schema in it")
        return found

    def _find_resources(self, root: Mapping[str, Any]) -> None:
        """Finds all schemas with a URI or an anchor, and the base URI of every schema."""
        waiting: list[tuple[Any, str]] = [(root, "")]
        while waiting:
            value, base = waiting.pop()
            if isinstance(value, list):
                waiting += [(item, base) for item in value]
            elif isinstance(value, Mapping) and id(value) not in self._bases:
                named = value.get("$id", value.get("id"))
                if isinstance(named, str) and (value is root or not named.startswith("#")):
                    base = urldefrag(urljoin(base, named)).url
                    self._resources.setdefault(base, value)
                elif isinstance(named, str):  # before draft 2019-09
                    self._resources[f"{base}{named}"] = value
                if isinstance(anchor := value.get("$anchor"), str):
                    self._resources[f"{base}#{anchor}"] = value
                self._bases[id(value)] = base
                waiting += [(item, base) for key, item in value.items() if key not in _NOT_SCHEMAS]
