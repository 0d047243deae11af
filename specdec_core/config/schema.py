"""JSON Schema of a run config, so that an editor completes its keys and marks its errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from specdec_core.config.run import PLUGIN_LISTS, PLUGIN_SECTIONS, RunConfig

Schema = dict[str, Any]
_PLUGIN = {"$ref": "#/$defs/PluginSection"}


def config_schema(plugins: Mapping[tuple[str, str], tuple[str, type[BaseModel]]]) -> Schema:
    """The core's schema, in which each plugin section is one of the plugins of its kind.

    `plugins` maps (kind, name) to (summary, model of the options).
    """
    schema = RunConfig.model_json_schema()
    schema["$schema"] = "http://json-schema.org/draft-07/schema#"
    definitions = schema["$defs"]
    for (kind, name), (summary, model) in plugins.items():
        definitions[f"{kind}.{name}"] = _plugin(f"{kind}.{name}", name, summary, model)
    for section, kind in PLUGIN_SECTIONS.items():
        _choose(schema["properties"], section, kind, [name for k, name in plugins if k == kind])
    for section, kind in PLUGIN_LISTS.items():
        table, _, key = section.rpartition(".")
        properties = definitions[_definition_of(schema, table)]["properties"] if table else schema["properties"]
        _choose(properties[key], "items", kind, [name for k, name in plugins if k == kind])
    del definitions["PluginSection"]
    return schema


def _plugin(key: str, name: str, summary: str, model: type[BaseModel]) -> Schema:
    """A plugin's own schema with `name`; its inner definitions stay inside it."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{key}/$defs/{{model}}")
    schema.setdefault("additionalProperties", False)
    schema["title"] = name
    schema["description"] = summary
    chosen = {"const": name, "type": "string", "description": summary}
    schema["properties"] = {"name": chosen, **schema.get("properties", {})}
    schema["required"] = ["name", *schema.get("required", [])]
    return schema


def _choose(properties: Schema, key: str, kind: str, names: list[str]) -> None:
    """Put the choice of a plugin, by table or by name alone, in place of the core's open table."""
    by_name = {"type": "string", "enum": names, "description": f"Name of the {kind} alone, with its defaults."}
    choice: list[Schema] = [*({"$ref": f"#/$defs/{kind}.{name}"} for name in names), by_name] if names else []
    old = properties[key]
    if "anyOf" in old:
        choice += [option for option in old["anyOf"] if option != _PLUGIN]
    kept = {word: value for word, value in old.items() if word not in ("anyOf", "$ref")}
    properties[key] = {**kept, "oneOf": choice} if choice else {**kept, "not": {}}


def _definition_of(schema: Schema, section: str) -> str:
    reference: str = schema["properties"][section].get("$ref") or schema["properties"][section]["allOf"][0]["$ref"]
    return reference.rpartition("/")[2]
