"""The tools of OpenAI's Responses API, and the conversion of the model's calls to items."""

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
    """A function that the model can call; ``parameters`` are a JSON schema. ``defer_loading`` has no effect."""

    ignores_unknown = True
    unsupported: ClassVar = {"allowed_callers": (["direct"],), "async": (False,)}

    type: Literal["function"]
    name: Name
    namespace: Name | None = None
    description: Text | None = None
    parameters: JsonObject = {}
    strict: bool = False

    def for_template(self) -> Json:
        """Returns the function in the format of chat templates, with the namespace in its name."""
        given = self.model_dump(exclude={"type", "namespace"}, exclude_unset=True)
        return _function({"parameters": {}} | given | {"name": items.full_name(self.namespace, self.name)})


class TextFormat(RequestBody):
    """The format of a custom tool's input, which is described to the model but not enforced."""

    ignores_unknown = True

    type: Text = "text"
    syntax: Text = ""
    definition: Text = ""


class CustomTool(RequestBody):
    """A tool that takes plain text; the model sees a function with one argument, ``input``."""

    ignores_unknown = True

    type: Literal["custom"]
    name: Name
    namespace: Name | None = None
    description: Text = ""
    format: TextFormat = TextFormat()

    def for_template(self) -> Json:
        """Returns the tool in the format of chat templates, as a function with one argument."""
        grammar = f"Grammar of the input ({self.format.syntax}):\n{self.format.definition}"
        description = [self.description] if self.description else []
        description += [grammar] if self.format.definition else []
        parameters = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
        name = items.full_name(self.namespace, self.name)
        return _function({"name": name, "description": "\n".join(description), "parameters": parameters})


def _function(function: Json) -> Json:
    return {"type": "function", "function": function}


def _flat(tools: Any) -> Any:
    """Replaces each namespace by its tools, which get the field ``namespace``."""
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
"""A list of tools without namespaces, and without tools that the server would have to run."""


class Calls:
    """Converts calls of ``tools`` to items of the tool's kind."""

    def __init__(self, tools: Iterable[FunctionTool | CustomTool]) -> None:
        self._tools: Mapping[str, FunctionTool | CustomTool] = {
            items.full_name(tool.namespace, tool.name): tool for tool in tools
        }

    def item(self, name: str, arguments: str, call_id: str) -> Json:
        """Returns the item of a call; ``name`` is that of :func:`items.full_name`."""
        tool = self._tools.get(name)
        if tool is None:
            return items.function_call(name, arguments, call_id)
        if isinstance(tool, CustomTool):
            return items.custom_tool_call(tool.name, _input(arguments), call_id, tool.namespace)
        return items.function_call(tool.name, arguments, call_id, tool.namespace)


def _input(arguments: str) -> str:
    """Returns the input of a custom tool call, or all ``arguments`` if they have another form."""
    match argument_values(arguments):
        case {"input": str(text)}:
            return text
    return arguments
