"""Strict settings: frozen pydantic models read from YAML, with errors of one line that name the nearest valid name.

Owns how settings are read and how their errors are worded. Knows no setting itself: each class keeps its own settings
beside it and derives them from `Settings`.
"""

import difflib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """A frozen group of settings that rejects unknown names and says which one was probably meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_names(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in values:
                if name not in cls.model_fields:
                    raise ValueError(unknown("setting", str(name), cls.model_fields))
        return values


class Variant(Settings):
    """Settings of one of several kinds, named by `kind`; a class from outside is called `package.module:Class`."""

    kind: str = ""

    @model_validator(mode="before")
    @classmethod
    def _kind_is_where_the_class_is(cls, values: Any) -> Any:
        if cls.model_fields["kind"].default or not isinstance(values, Mapping):
            return values
        return {**values, "kind": f"{cls.__module__}:{cls.__qualname__}"}


V = TypeVar("V", bound=Variant)


def named(what: str, name: str, known: Mapping[str, object]) -> object:
    """What a `what` is called in settings: one of the known, or whatever stands at `package.module:name`.

    Raises ValueError for an unknown name and where nothing can be imported.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in known:
            raise ValueError(unknown(what, name, known))
        return known[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot import the {what} '{name}': {error}") from None


def variant_class(what: str, kind: str, base: type[V], known: Mapping[str, type[V]]) -> type[V]:
    """The class of a `what` by its name in settings, imported where that is `package.module:Class`.

    Raises ValueError for an unknown name, and for a place that holds no subclass of `base`.
    """
    found = named(what, kind, known)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"'{kind}' is not a {what}; derive it from {base.__module__}.{base.__qualname__}")
    return found


def read_variant(what: str, value: object, base: type[V], known: Mapping[str, type[V]]) -> object:
    """A mapping with `kind`, or a kind alone, as an instance of its class; anything else as it is, for pydantic."""
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        return value
    if not isinstance(value.get("kind"), str):
        raise ValueError(f"missing kind, which says which {what} is meant ({', '.join(known)})")
    try:
        return variant_class(what, value["kind"], base, known).model_validate(value)
    except ValidationError as error:
        raise ValueError(describe(error)) from None


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice spelled most like `name`, or None when none is close."""
    matches = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """Return the message for a name that is not among the choices.

    For example `unknown sampler 'roling'; did you mean 'rolling'? (chunkwise, rolling)`.
    """
    choices = list(choices)
    match = nearest(name, choices)
    hint = f"did you mean '{match}'?" if match else "expected one of"
    return f"unknown {kind} '{name}'; {hint} ({', '.join(choices)})"


def first_few(items: Sequence[str], most: int) -> str:
    """The first `most` items by commas, and how many more there are: `a, b and 3 more`."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def load_settings(cls: type[S], path: str | Path | None, overrides: Sequence[str] = ()) -> S:
    """Return `cls` read from the YAML file `path`, with overrides of the form `a.b=value` on top.

    path None starts from the defaults. Override values are YAML (`steps=[1000, 500]`, `sink={kind: none}`).
    Raises ValueError, in one line that begins with the file's name, for a file that is missing or not a mapping, for a
    repeated, unknown or missing name, for a value of the wrong type, and for an override without `=`.
    """
    source = "settings" if path is None else str(path)
    values = {} if path is None else _read_mapping(Path(path))
    for override in overrides:
        apply_override(values, override)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{source}: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """Return a pydantic error as one line: `place: what was wrong` for each problem, joined by semicolons."""
    return "; ".join(_describe_problem(dict(problem)) for problem in error.errors())


def _describe_problem(problem: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    context = problem.get("ctx", {})
    match problem["type"]:
        case "value_error":
            message = str(context["error"])
        case "union_tag_invalid":
            names = context["expected_tags"].replace("'", "").split(", ")
            message = unknown(context["discriminator"].strip("'"), context["tag"], names)
        case "union_tag_not_found":
            message = f"missing {context['discriminator']}, which says which variant is meant"
        case "missing":
            message = "this setting is required"
        case _:
            message = f"{problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"
    return f"{place}: {message}" if place else message


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` inside the nested mapping, making the groups on the way.

    Another `kind` begins its group afresh: the numbers of the old kind would not fit it. Raises ValueError for an
    override without `=`, into a value, or that is not YAML.
    """
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"override '{override}' must have the form group.name=value")
    *groups, last = name.strip().split(".")
    for group in groups:
        if values.get(group) is None:
            values[group] = {}
        values = values[group]
        if not isinstance(values, dict):
            raise ValueError(f"override '{override}': '{group}' is a value, not a group of settings")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"override '{override}': the value is not valid YAML") from None
    if last == "kind" and values.get("kind") != value:
        values.clear()
    values[last] = value


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such settings file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, except that a repeated name is an error (PyYAML would keep the last one silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, name in enumerate(names):
            if name in names[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"'{name}' is set twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)
