"""Frozen dataclasses as JSON: read with errors that name the field, written, and as JSON Schema.

A dataclass states each field once, by its type. From that come the reader, the writer and the
schema. A field with a default may be absent, and is left out where it holds its default; a field
without one must be there, and is null only where its type has ``None``.
"""

import dataclasses
import json
import re
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from poan_runtime.errors import PoanError

Json = Mapping[str, Any]
R = TypeVar("R", bound="Record")


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """What a value must be: in words, as a test of the decoded JSON, and as JSON Schema."""

    words: str
    holds: Callable[[Any], bool]
    schema: Json


def says(description: str) -> dict[str, Any]:
    """Metadata of a field whose meaning the schema is to state."""
    return {"schema": {"description": description}}


LARGEST = 2.0**53
"""Beyond it not every whole number is a float, and no field means one."""


def _number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, float) or -LARGEST <= value <= LARGEST


def _whole(value: Any) -> bool:
    return _number(value) and float(value).is_integer() and abs(value) <= LARGEST


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def whole(least: int) -> Rule:
    """A whole number of at least ``least``; 4.0 counts as one, as JSON Schema has it."""
    return Rule(
        f"a whole number of at least {least}",
        lambda value: _whole(value) and value >= least,
        {"type": "integer", "minimum": least},
    )


FILE_NAME = r"[^/\\]+"
SHA256 = r"[0-9a-f]{64}"
Natural = Annotated[int, whole(0)]
Positive = Annotated[int, whole(1)]
Text = Annotated[
    str,
    Rule(
        "a non-empty string",
        lambda value: isinstance(value, str) and value != "",
        {"type": "string", "minLength": 1},
    ),
]
FileName = Annotated[
    str,
    Rule(
        "a plain file name",
        lambda value: _matches(FILE_NAME)(value) and value not in (".", ".."),
        {"type": "string", "pattern": f"^{FILE_NAME}$", "not": {"enum": [".", ".."]}},
    ),
]
Sha256 = Annotated[
    str,
    Rule(
        "64 lower-case hex digits",
        _matches(SHA256),
        {"type": "string", "pattern": f"^{SHA256}$"},
    ),
]
Amount = Annotated[
    float,
    Rule(
        "a number of at least 0",
        lambda value: _number(value) and value >= 0,
        {"type": "number", "minimum": 0},
    ),
]
Percentile = Annotated[
    float,
    Rule(
        "a number above 0 and at most 100",
        lambda value: _number(value) and 0 < value <= 100,
        {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
    ),
]
MeasuredShare = Annotated[
    str | float,
    Rule(
        "on, off or a share from 0 to 1",
        lambda value: value in ("on", "off") or (_number(value) and 0 <= value <= 1),
        {"anyOf": [{"enum": ["on", "off"]}, {"type": "number", "minimum": 0, "maximum": 1}]},
    ),
]
PLAIN: Mapping[Any, Rule] = {
    str: Rule("a string", lambda value: isinstance(value, str), {"type": "string"}),
    int: Rule("a whole number", _whole, {"type": "integer"}),
    float: Rule("a number", _number, {"type": "number"}),
    bool: Rule("true or false", lambda value: isinstance(value, bool), {"type": "boolean"}),
}
CONVERT: Mapping[Any, Callable[[Any], Any]] = {int: int, float: float}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """An object of a JSON document.

    ``other`` holds the keys that this version does not know; they are written back as they came.
    """

    other: Json = dataclasses.field(default_factory=dict, repr=False, hash=False)

    def json(self) -> dict[str, Any]:
        """The object as `json.dumps` takes it, in the order of the fields."""
        written: dict[str, Any] = {}
        for field in _fields(type(self)):
            value = getattr(self, field.name)
            if _required(field) or value != _default(field):
                written[field.name] = _encode(value)
        return {**written, **self.other}

    def check(self) -> str | None:
        """What is wrong with the fields together, in words, or None."""
        return None


def read(kind: type[R], value: object, source: str) -> R:
    """The record in a decoded JSON value; ``source`` names the document in errors.

    Raises PoanError naming document, field, what was expected and what came.
    """
    try:
        found: R = _decode(kind, value, "")
    except _Wrong as wrong:
        raise PoanError(f"{source}: {wrong}") from None
    return found


class _Wrong(ValueError):
    """What is wrong with a value, and where."""

    @classmethod
    def value(cls, where: str, expected: str, value: Any) -> "_Wrong":
        return cls(f"{where or 'top level'}: expected {expected}, got {json.dumps(value)}")


def _fields(kind: type[Record]) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(kind) if field.name != "other"]


def _required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _type_of(kind: type[Record], field: dataclasses.Field[Any]) -> Any:
    """The type of a field's value where it is there: null is not one where absence says it."""
    hint = get_type_hints(kind, include_extras=True)[field.name]
    if not _required(field) and field.default is None:
        (hint,) = (option for option in get_args(hint) if option is not types.NoneType)
    return hint


def _rule(kind: Any) -> Rule | None:
    """The rule of a type that is no container."""
    if get_origin(kind) is Annotated:
        return next(part for part in get_args(kind)[1:] if isinstance(part, Rule))
    return _one_of(get_args(kind)) if get_origin(kind) is Literal else PLAIN.get(kind)


def _one_of(options: tuple[Any, ...]) -> Rule:
    one = len(options) == 1
    return Rule(
        str(options[0]) if one else f"one of {', '.join(options)}",
        lambda value: any(type(value) is type(option) and value == option for option in options),
        {"const": options[0]} if one else {"enum": [*options]},
    )


def _decode(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the Python value of the type ``kind``."""
    if (rule := _rule(kind)) is not None:
        if not rule.holds(value):
            raise _Wrong.value(where, rule.words, value)
        bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        return CONVERT[bare](value) if bare in CONVERT else value
    if isinstance(kind, type) and get_origin(kind) is None:  # 3.10 takes list[int] for a type
        return _decode_record(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        return _decode_union(arguments, value, where)
    if origin is tuple:
        return _decode_list(arguments, value, where)
    if not isinstance(value, dict):
        raise _Wrong.value(where, "an object", value)
    if arguments[1] is Any:
        return value
    return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}


def _decode_record(kind: type[R], value: Any, where: str) -> R:
    if not isinstance(value, dict):
        raise _Wrong.value(where, "an object", value)
    found: dict[str, Any] = {}
    for field in _fields(kind):
        path = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            found[field.name] = _decode(_type_of(kind, field), value[field.name], path)
        elif _required(field):
            raise _Wrong(f"{path}: expected a value, got nothing")
    known = {field.name for field in _fields(kind)}
    record = kind(**found, other={key: item for key, item in value.items() if key not in known})
    if (wrong := record.check()) is not None:
        raise _Wrong(f"{where}: {wrong}" if where else wrong)
    return record


def _decode_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """Null if that is an option; else the first record whose constant fields fit, or the last."""
    if value is None and types.NoneType in options:
        return None
    kinds = [option for option in options if option is not types.NoneType]
    return _decode(
        next((kind for kind in kinds if _constants_fit(kind, value)), kinds[-1]), value, where
    )


def _constants_fit(kind: Any, value: Any) -> bool:
    plain = isinstance(kind, type) and get_origin(kind) is None
    if not (plain and issubclass(kind, Record) and isinstance(value, dict)):
        return False
    constants = {
        field.name: get_args(field_kind)
        for field in _fields(kind)
        if get_origin(field_kind := _type_of(kind, field)) is Literal
    }
    return all(value.get(name) in options for name, options in constants.items())


def _decode_list(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """A list of one type, or of as many items as ``arguments`` has."""
    if not isinstance(value, list):
        raise _Wrong.value(where, "a list", value)
    kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else [*arguments]
    if len(kinds) != len(value):
        raise _Wrong.value(where, f"a list of {len(kinds)}", value)
    pairs = zip(kinds, value, strict=True)
    return tuple(_decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs))


def _encode(value: Any) -> Any:
    if isinstance(value, Record):
        return value.json()
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    return [_encode(item) for item in value] if isinstance(value, tuple | list) else value


def schema(kind: type[Record], title: str, identifier: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of documents that `read` takes; docstrings become descriptions.

    What `Record.check` says of several fields together is left to the reader.
    """
    definitions: dict[str, Any] = {}
    root = _record_schema(kind, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": identifier,
        "title": title,
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _record_schema(kind: type[Record], definitions: dict[str, Any]) -> dict[str, Any]:
    fields = _fields(kind)
    return {
        "description": " ".join((kind.__doc__ or "").split()),
        "type": "object",
        "required": [field.name for field in fields if _required(field)],
        "properties": {
            field.name: {
                **_schema(_type_of(kind, field), definitions),
                **field.metadata.get("schema", {}),
            }
            for field in fields
        },
    }


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if (rule := _rule(kind)) is not None:
        return dict(rule.schema)
    if kind is types.NoneType:
        return {"type": "null"}
    if isinstance(kind, type) and get_origin(kind) is None:  # 3.10 takes list[int] for a type
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = _record_schema(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        return {"anyOf": [_schema(option, definitions) for option in arguments]}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is tuple:
        items = [_schema(item, definitions) for item in arguments]
        return {
            "type": "array",
            "prefixItems": items,
            "minItems": len(items),
            "maxItems": len(items),
        }
    if arguments[1] is Any:
        return {"type": "object"}
    return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
