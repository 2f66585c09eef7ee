"""JSON schemas drawn by number: nested, of every kind, and bounded, so that an answer can end."""

from __future__ import annotations

import random
from typing import Any

Json = dict[str, Any]
_WORDS = ("name", "city", "age", "tags", "price", "email", "status", "items", "notes", "kind")
_PATTERNS = (
    r"^[A-Z]{2}-[0-9]{3,5}$", r"^(red|green|blue)$", r"^\d{4}-\d{2}$", r"^[a-f0-9]{8}$",
    r"^\w{1,12}$",
    r"^[^\s@]{1,10}@[a-z]{2,8}\.(com|org)$", r"^(\+\d{1,3} )?\d{3} \d{4}$", r"^[А-я]{1,6}$",
)  # fmt: skip
_FORMATS = ("date", "uuid", "ipv4", "time", "date-time")
_DEPTH = 3


def draw(number: int) -> Json:
    """The same for the same number. Its root is an object, as every API wants it."""
    return _Drawing(random.Random(number)).root()


class _Drawing:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._defs: Json = {}

    def root(self) -> Json:
        schema = self._object(0)
        return schema | ({"$defs": self._defs} if self._defs else {})

    def _any(self, depth: int) -> Json:
        flat = (
            self._string, self._string, self._pattern, self._enum, self._integer, self._number,
            self._const, self._boolean, self._format,
        )  # fmt: skip
        if depth >= _DEPTH or self._chance.random() < 0.5:
            return self._chance.choice(flat)()
        deep = (self._object, self._array, self._union, self._reference, self._tuple)
        return self._chance.choice(deep)(depth + 1)

    def _object(self, depth: int) -> Json:
        names = self._chance.sample(_WORDS, self._chance.randint(1, 4))
        properties = {name: self._any(depth + 1) for name in names}
        required = [name for name in names if self._chance.random() < 0.8]
        schema: Json = {"type": "object", "properties": properties, "required": required}
        if self._chance.random() < 0.5:
            schema["additionalProperties"] = False
        return schema

    def _array(self, depth: int) -> Json:
        fewest = self._chance.randint(0, 2)
        most = fewest + self._chance.randint(0, 2)
        return {"type": "array", "items": self._any(depth), "minItems": fewest, "maxItems": most}

    def _tuple(self, depth: int) -> Json:
        items = [self._any(depth) for _ in range(self._chance.randint(1, 2))]
        bounds = {"minItems": len(items), "maxItems": len(items)}
        return {"type": "array", "prefixItems": items, "items": False, **bounds}

    def _union(self, depth: int) -> Json:
        return {"anyOf": [self._any(depth) for _ in range(self._chance.randint(2, 3))]}

    def _reference(self, depth: int) -> Json:
        name = f"d{len(self._defs)}"
        self._defs[name] = {}
        self._defs[name] = self._any(depth)
        return {"$ref": f"#/$defs/{name}"}

    def _string(self) -> Json:
        fewest = self._chance.randint(0, 3)
        return {
            "type": "string",
            "minLength": fewest,
            "maxLength": fewest + self._chance.randint(1, 12),
        }

    def _pattern(self) -> Json:
        return {"type": "string", "pattern": self._chance.choice(_PATTERNS)}

    def _format(self) -> Json:
        return {"type": "string", "format": self._chance.choice(_FORMATS)}

    def _enum(self) -> Json:
        values: list[Any] = ["small", "large", 'a "quoted" one', 7, 2.5, None, True, "naïve 模型"]
        return {"enum": self._chance.sample(values, self._chance.randint(1, 5))}

    def _const(self) -> Json:
        return {"const": self._chance.choice(["fixed", 12, {"a": [1, 2]}, False])}

    def _boolean(self) -> Json:
        return {"type": self._chance.choice(["boolean", ["boolean", "null"]])}

    def _integer(self) -> Json:
        least = self._chance.randint(-100, 100)
        kinds: list[Json] = [
            {"minimum": least, "maximum": least + self._chance.randint(0, 5000)},
            {"exclusiveMinimum": 0, "exclusiveMaximum": 10},
            {"multipleOf": 5, "minimum": 0, "maximum": 100},
            {},
        ]
        return {"type": "integer", **self._chance.choice(kinds)}

    def _number(self) -> Json:
        return {"type": "number", "minimum": 0, "maximum": self._chance.choice([1, 90, 1000])}
