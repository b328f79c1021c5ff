"""Leaves of a profile (ISF) what the views of src/os/linux can ask for, so that it is small enough to be kept.

What they can ask for is what they name: an identifier in a string literal. Structures and unions of such a name stay,
and those that lie inside of them, with the members of such names; an enumeration stays if it or one of its constants is
named, a symbol if it is. What a pointer points to is lost: the views name the type themselves.
"""

import re

LITERAL = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
PATH = re.compile(r"[A-Za-z_][\w.\[\]]*")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
# What attaching and reading the file need beside.
SYMBOLS = {"_text", "_stext", "linux_banner"}


def names_in(folder):
    """The identifiers in the string literals of all sources below FOLDER that can be a path of members or a symbol."""
    names = set(SYMBOLS)
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".cpp", ".h"):
            for literal in LITERAL.findall(path.read_text()):
                if PATH.fullmatch(literal):
                    names.update(IDENTIFIER.findall(literal))
    return names


def contained(descriptor):
    """The descriptor of what lies in a member itself, not behind a pointer."""
    while descriptor["kind"] in ("array", "bitfield"):
        descriptor = descriptor["subtype" if descriptor["kind"] == "array" else "type"]
    return descriptor


def without_pointed_to(descriptor):
    if descriptor["kind"] == "pointer":
        return {"kind": "pointer", "subtype": {"kind": "base", "name": "void"}}
    return {key: without_pointed_to(value) if isinstance(value, dict) else value for key, value in descriptor.items()}


def strip(isf, names):
    """ISF, a parsed document, with no more than NAMES ask for."""
    types = isf["user_types"]
    kept, waiting = {}, sorted(name for name in types if name in names)
    while waiting:
        name = waiting.pop()
        if name in kept or name not in types:
            continue
        fields = {key: {**field, "type": without_pointed_to(field["type"])}
                  for key, field in types[name]["fields"].items() if key in names or field.get("anonymous")}
        kept[name] = {**types[name], "fields": fields}
        inside = (contained(field["type"]) for field in fields.values())
        waiting.extend(inner["name"] for inner in inside if inner["kind"] in ("struct", "union"))
    enums = {name: enum for name, enum in isf["enums"].items() if name in names or names & set(enum["constants"])}
    enums.update((name, isf["enums"][name]) for name in enums_inside(kept) if name in isf["enums"])
    symbols = {name: symbol for name, symbol in isf["symbols"].items() if name in names}
    return {**isf, "user_types": kept, "enums": enums, "symbols": symbols}


def enums_inside(types):
    for structure in types.values():
        for field in structure["fields"].values():
            inner = contained(field["type"])
            if inner["kind"] == "enum":
                yield inner["name"]
