"""Tools as OpenAI's Responses have them, and the one name by which a model calls each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from freedive.json_object import Json
from freedive.server.offers import offered
from freedive.server.openai.responses import items
from freedive.server.request_body import JsonObject, RequestBody, Text
from freedive.text.arguments import argument_values

Name = Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class FunctionTool(RequestBody):
    """What the model can call: ``parameters`` are a JSON schema. A deferred tool is shown from the beginning."""

    ignores_unknown = True
    unsupported: ClassVar = {"allowed_callers": (["direct"],), "async": (False,)}

    type: Literal["function"]
    name: Name
    namespace: Name | None = None
    description: Text | None = None
    parameters: JsonObject = {}
    strict: bool = False

    def for_template(self) -> Json:
        """The function as it came, but for its one name."""
        given = self.model_dump(exclude={"type", "namespace"}, exclude_unset=True)
        return _function({"parameters": {}} | given | {"name": items.full_name(self.namespace, self.name)})


class TextFormat(RequestBody):
    """The form of a custom tool's input, which the model is told, and not made to keep to."""

    ignores_unknown = True

    type: Text = "text"
    syntax: Text = ""
    definition: Text = ""


class CustomTool(RequestBody):
    """What the model calls with a text: a function whose one argument is the ``input``."""

    ignores_unknown = True

    type: Literal["custom"]
    name: Name
    namespace: Name | None = None
    description: Text = ""
    format: TextFormat = TextFormat()

    def for_template(self) -> Json:
        """The function that stands for it."""
        grammar = f"Grammar of the input ({self.format.syntax}):\n{self.format.definition}"
        description = [self.description] if self.description else []
        description += [grammar] if self.format.definition else []
        parameters = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
        name = items.full_name(self.namespace, self.name)
        return _function({"name": name, "description": "\n".join(description), "parameters": parameters})


def _function(function: Json) -> Json:
    return {"type": "function", "function": function}


def _flat(tools: Any) -> Any:
    """The tools of namespaces as tools that know their namespace."""
    if not isinstance(tools, list):
        return tools
    flat: list[Any] = []
    for tool in tools:
        inner = tool.get("tools") if isinstance(tool, dict) and tool.get("type") == "namespace" else None
        if isinstance(inner, list):
            flat += [each | {"namespace": tool.get("name")} if isinstance(each, dict) else each for each in inner]
        else:
            flat.append(tool)
    return _offered(flat)


_offered = offered("function", "custom")
Tool = Annotated[FunctionTool | CustomTool, Field(discriminator="type")]
Tools = Annotated[list[Tool], BeforeValidator(_flat, json_schema_input_type=list[Tool])]
"""Namespaces are taken apart; tools that the server would have to run are left out."""


class Calls:
    """Writes calls of ``tools`` as items, each of its tool's kind."""

    def __init__(self, tools: Iterable[FunctionTool | CustomTool]) -> None:
        self._tools: Mapping[str, FunctionTool | CustomTool] = {
            items.full_name(tool.namespace, tool.name): tool for tool in tools
        }

    def item(self, name: str, arguments: str, call_id: str) -> Json:
        """The item of a call by its one name."""
        tool = self._tools.get(name)
        if tool is None:
            return items.function_call(name, arguments, call_id)
        if isinstance(tool, CustomTool):
            return items.custom_tool_call(tool.name, _input(arguments), call_id, tool.namespace)
        return items.function_call(tool.name, arguments, call_id, tool.namespace)


def _input(arguments: str) -> str:
    """The text that a custom tool was called with; whatever else a model wrote comes as it is."""
    match argument_values(arguments):
        case {"input": str(text)}:
            return text
    return arguments
