"""From YAML files and overrides to a RunConfig, or to one clear line about what is wrong.

Knows where each key was written (file and line), so that every complaint can
say so. Reads files; knows nothing of machines or plans.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from trainer.config.complaints import Complaints, Document, Key
from trainer.config.errors import ConfigError
from trainer.config.schema import RunConfig

AnySection = TypeVar("AnySection", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers and booleans: 1e-4 is a number, 010 is ten, `no` is a word. Duplicate keys are refused."""

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """An integer of the YAML 1.2 core schema."""
        return int(str(self.construct_scalar(node)), 10)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), "-+0123456789")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    "-+0123456789.",
)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would otherwise read as a number or a boolean."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def load_config(
    path: str | Path, *, overrides: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> RunConfig:
    """Read a configuration file with its `extends:` chain, apply `a.b=c` overrides, and validate.

    Args:
        path: YAML file.
        overrides: `dotted.key=value` strings; the value is read as YAML.
        variables: what `${NAME}` in a string stands for; an unknown name is an error.

    Raises:
        ConfigError: one line for each mistake, with file, line, key, what was wanted and the nearest key.
    """
    return load_as(RunConfig, path, overrides=overrides, variables=variables)


def load_as(
    root: type[AnySection],
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> AnySection:
    """`load_config` for any root section."""
    document = _read_with_parents(Path(path), chain=())
    complaints = Complaints(root, document)
    for override in overrides:
        _apply_override(document, override, complaints)
    _expand_variables(document, variables or {})
    try:
        return root.model_validate(document.values)
    except ValidationError as error:
        raise ConfigError(complaints.all(error.errors())) from None


def to_yaml(config: BaseModel) -> str:
    """A resolved configuration as YAML that `load_config` reads back to an equal value."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> Document:
    """Parse one YAML mapping, remembering the line of each key.

    Raises:
        ConfigError: the file is missing, is not YAML, repeats a key, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}). Give the path of a YAML configuration.") from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        document = Document(origin={(): str(path)})
        if node is None:
            raise ConfigError(f"{path}: the file is empty; wanted a YAML mapping with `run`, `model`, `data`, ...")
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}:{node.start_mark.line + 1}: found a {node.id}, wanted a mapping `key: value`.")
        _note_lines(node, (), document, path, parents=())
        document.values = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: malformed YAML: {error.problem}. Check indentation and quotes.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: malformed YAML: {' '.join(str(error).split())}.") from None
    return document


def _note_lines(
    node: yaml.MappingNode, prefix: Key, document: Document, path: Path, *, parents: tuple[yaml.Node, ...]
) -> None:
    if any(node is parent for parent in parents):
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: {'.'.join(prefix)}: an alias inside its own anchor.")
    for key_node, value_node in node.value:
        key = (*prefix, str(key_node.value))
        place = f"{path}:{key_node.start_mark.line + 1}"
        if key in document.origin:
            raise ConfigError(f"{place}: {'.'.join(key)}: given twice (also at {document.origin[key]}). Keep one.")
        document.origin[key] = place
        if isinstance(value_node, yaml.MappingNode):
            _note_lines(value_node, key, document, path, parents=(*parents, node))


def _read_with_parents(path: Path, *, chain: tuple[Path, ...]) -> Document:
    if path.resolve() in chain:
        loop = " -> ".join(str(p) for p in (*chain, path.resolve()))
        raise ConfigError(f"{path}: `extends` goes in a circle: {loop}.")
    document = read_yaml(path)
    parent_name = document.values.pop("extends", None)
    if parent_name is None:
        return document
    if not isinstance(parent_name, str):
        raise ConfigError(
            f"{document.where(('extends',))}: extends: found {parent_name!r}, wanted a path beside this file."
        )
    if not (path.parent / parent_name).is_file():
        raise ConfigError(
            f"{document.where(('extends',))}: extends: {path.parent / parent_name}: cannot be read "
            "(No such file or directory). The path is relative to this file."
        )
    parent = _read_with_parents(path.parent / parent_name, chain=(*chain, path.resolve()))
    _merge(parent.values, document.values)
    return Document(parent.values, {**parent.origin, **document.origin})


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(below[key], value)
        else:
            below[key] = copy.deepcopy(value)


def _apply_override(document: Document, override: str, complaints: Complaints) -> None:
    dotted, separator, text = override.partition("=")
    place = f"override {override!r}"
    if not separator or not dotted:
        raise ConfigError(f"{place}: wanted key=value, for example training.num_steps=100.")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"{place}: the value is not YAML. Quote it if it holds special characters.") from None
    key = tuple(dotted.split("."))
    known = complaints.known_keys(key[:-1])
    if known is not None and key[-1] not in known:
        raise ConfigError(f"{place}: {complaints.unknown_key(key, known)}")
    target = document.values
    for part in key[:-1]:
        if not isinstance(target.get(part), dict):
            target[part] = {}
        target = target[part]
    target[key[-1]] = value
    document.origin[key] = place


def _expand_variables(document: Document, variables: Mapping[str, str]) -> None:
    def expand(value: Any, key: Key) -> Any:
        if isinstance(value, dict):
            return {name: expand(child, (*key, str(name))) for name, child in value.items()}
        if isinstance(value, list):
            return [expand(child, key) for child in value]
        return re.sub(r"\$\{(\w+)\}", lambda match: lookup(match[1], key), value) if isinstance(value, str) else value

    def lookup(name: str, key: Key) -> str:
        if name not in variables:
            known = ", ".join(sorted(variables)) or "none"
            raise ConfigError(f"{document.where(key)}: {'.'.join(key)}: unknown variable ${{{name}}}. Known: {known}.")
        return variables[name]

    document.values = expand(document.values, ())
