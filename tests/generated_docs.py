"""Writes into the documents what the code knows: `python -m tests.generated_docs`.

A document marks such a place with `<!-- generated: NAME -->` and `<!-- end -->`; PARTS makes what
stands between. In a recipe's header it is everything from `# Time:` to the first field.
"""

import argparse
import ast
import dataclasses
import inspect
import json
import re
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path

from fusionrun.cli import make_parser
from fusionrun.common.file_paths import FilePath
from fusionrun.experts import BUILDERS, argument_defaults, build_expert
from fusionrun.study import recipe as recipes
from fusionrun.study import runtime
from fusionrun.study.defaults import EXPERT_DEFAULTS, FUSION_DEFAULTS, SHARED_FUSION
from fusionrun.study.recipe import Recipe
from tests import measured
from tests.contract.test_layers import ROOMS
from tests.tiny import ROOT

PAGES = ("README.md", "docs/*.md", "CHANGELOG.md", "CONTRIBUTING.md")
PLACE = re.compile(r"(<!-- generated: ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Every document of the repository."""
    return [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]


def renewed(path: Path) -> str:
    """The document or recipe as it should be."""
    text = path.read_text()
    if path.suffix == ".yaml":
        record = measured.read(path.stem)
        return text if record is None else with_figures(text, record)
    return PLACE.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}\n{found[3]}", text)


def with_figures(text: str, record: measured.Record) -> str:
    """A recipe whose header says what was measured."""
    return re.sub(r"^# Time:.*\n(?:#.*\n)*", measured.header(record), text, count=1, flags=re.M)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; a heading that ends with `:` is of numbers."""
    right = [heading.endswith(":") for heading in headings]
    lines = [[heading.removesuffix(":") for heading in headings]]
    lines.append(["--:" if is_right else "---" for is_right in right])
    lines += [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# -- a recipe's fields -------------------------------------------------------------------------


def fields() -> str:
    """Every field that a recipe can have, class by class, from the code that reads it."""
    comments = comments_of(recipes) | comments_of(runtime)
    parts = []
    for prefix, kind in sections(Recipe):
        owner = comments[kind.__name__]
        hints = typing.get_type_hints(kind)
        rows = [
            (f"`{prefix}{f.name}`", spelled(hints[f.name]), default(f), owner.get(f.name, ""))
            for f in dataclasses.fields(kind)
            if section_of(hints[f.name]) is None
        ]
        title = prefix.rstrip(".[]") or "The recipe itself"
        about = (inspect.getdoc(kind) or "").partition("\n")[0]
        table = markdown(["field", "type", "default", "meaning"], rows)
        parts.append(f"### {title}\n\n{about}\n\n{table}")
    return "\n\n".join(parts)


def sections(kind: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """(how its fields' paths begin, class) of the recipe and of the classes inside it."""
    yield prefix, kind
    hints = typing.get_type_hints(kind)
    for f in dataclasses.fields(kind):
        inner = section_of(hints[f.name])
        if inner is not None:
            is_list = typing.get_origin(hints[f.name]) is tuple
            yield from sections(inner, f"{prefix}{f.name}{'[].' if is_list else '.'}")


def section_of(hint: object) -> type | None:
    """The dataclass that a field holds: itself, several or perhaps one."""
    for one in (hint, *typing.get_args(hint)):
        if isinstance(one, type) and dataclasses.is_dataclass(one):
            return one
    return None


def comments_of(module: types.ModuleType) -> dict[str, dict[str, str]]:
    """{class: {field: the comment beside it, or the lines of comment directly above it}}."""
    source = inspect.getsource(module)
    beside = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                above, line = [], item.lineno - 1
                while beside.get(line, ("", False))[1]:
                    above.insert(0, beside[line][0])
                    line -= 1
                own = beside.get(item.end_lineno or item.lineno, ("", True))[0]
                text = own or " ".join(above)
                found.setdefault(node.name, {})[item.target.id] = in_code_words(text)
    return found


def in_code_words(text: str) -> str:
    """Angle brackets and stars are markup in Markdown: paths with them are code, stars escaped."""
    return re.sub(r"[\w./]*(?:<\w+>[\w./]*)+", r"`\g<0>`", text).replace("*", "\\*")


def spelled(hint: object) -> str:
    """A type in the words of YAML."""
    names = {FilePath: "path", int: "integer", float: "number", str: "text", bool: "true or false"}
    if hint in names:
        return names[hint]  # type: ignore[index]
    if hint is type(None):
        return "null"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {spelled(arguments[0])}"
    if origin is dict:
        return "mapping"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(spelled, arguments))
    return "mapping" if hint is dict else "any"


def default(f: "dataclasses.Field[object]") -> str:
    value = f.default
    if f.default_factory is not dataclasses.MISSING:
        value = f.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    return f"`{json.dumps(value)}`".replace('"', "") if value != "" else "empty"


def models() -> str:
    """The arguments that `models` may give an architecture."""
    rows = []
    for name in BUILDERS:
        for argument, value in argument_defaults(name).items():
            shown = list(value) if isinstance(value, tuple) else value
            rows.append((f"`models.{name}.{argument}`", f"`{json.dumps(shown)}`"))
    return markdown(["field", "default"], rows)


def architectures() -> str:
    """What the four are, counted at 100 classes."""
    rows = []
    for name, kind in BUILDERS.items():
        expert = build_expert(name, 100)
        count = sum(parameter.numel() for parameter in expert.parameters())
        rows.append((f"`{name}`", kind.__name__, f"{count:,}", expert.feature_dim))
    return markdown(["model", "class", "parameters:", "features D:"], rows)


def published() -> str:
    """What a recipe's null stands for."""
    return "\n\n".join(
        markdown([what, *names], [(f"`{key}`", *dataclasses.astuple(value)) for key, value in rows])
        for what, names, rows in (
            ("expert", names_of(EXPERT_DEFAULTS), EXPERT_DEFAULTS.items()),
            ("fusion", names_of(FUSION_DEFAULTS), FUSION_DEFAULTS.items()),
            ("fusion.recipe", names_of(FUSION_DEFAULTS), [("shared", SHARED_FUSION)]),
        )
    )


def names_of(table: Mapping[str, object]) -> list[str]:
    first = next(iter(table.values()))
    assert dataclasses.is_dataclass(first)
    return [f.name for f in dataclasses.fields(first)]


# -- commands ----------------------------------------------------------------------------------


def subparsers() -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    (found,) = [a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return found


def verbs() -> dict[str, argparse.ArgumentParser]:
    """{verb: its parser}."""
    return dict(subparsers().choices)


def verb_table() -> str:
    return markdown(
        ["verb", "does"],
        [(f"[`{verb.dest}`](#{verb.dest})", verb.help) for verb in subparsers()._choices_actions],
    )


def helps() -> str:
    """What every verb's --help says; argparse's own layout is another one in every Python."""
    parts = []
    for name, parser in verbs().items():
        options = [a for a in parser._actions if a.help != argparse.SUPPRESS and a.dest != "help"]
        usage = " ".join(["fusionrun", name, *map(usage_of, options)])
        rows = [(f"`{spelled_argument(a)}`", in_code_words(a.help or "")) for a in options]
        parts += [f"### {name}", f"`{usage}`", in_code_words(parser.description or "")]
        parts.append(markdown(["argument", "meaning"], rows))
        parts += [in_code_words(parser.epilog)] if parser.epilog else []
    return "\n\n".join(parts)


def spelled_argument(action: argparse.Action) -> str:
    """--output FILE, RECIPE."""
    word = str(action.metavar or action.dest.upper())
    if action.choices is not None:
        word = "|".join(map(str, action.choices))
    if not action.option_strings:
        return word
    flags = ", ".join(action.option_strings)
    return flags if action.nargs == 0 else f"{flags} {word}"


def usage_of(action: argparse.Action) -> str:
    word = spelled_argument(action)
    if action.option_strings:
        return f"[{word}]"
    return {"*": f"[{word} ...]", "+": f"{word} ..."}.get(str(action.nargs), word)


# -- the house ---------------------------------------------------------------------------------


def rooms() -> str:
    """The table of arrows that test_layers.py holds, with each room's own first line."""
    rows = []
    for name, below in reversed(ROOMS.items()):
        folder = ROOT / "fusionrun" / name
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        about = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
        knows = ", ".join(other for other in ROOMS if other in below) or "nothing"
        rows.append((f"`{name}`", about, knows))
    return markdown(["room", "what it is", "imports from"], rows)


# -- figures -----------------------------------------------------------------------------------


def speeds() -> str:
    """The recorded ratios, as `python -m tests.bench` wrote them, and those of a second run."""

    def recorded(name: str) -> dict[str, dict[str, typing.Any]]:
        path = ROOT / f"tests/bench/{name}.json"
        rows = json.loads(path.read_text())["rows"] if path.is_file() else ()
        return {f"{row['group']}: {row['name']}": row for row in rows if row["ratio"] is not None}

    verdicts = {True: "met", False: "**missed**", None: ""}
    rows = []
    for name in ("cpu", "cpu_layout", "cpu_peers"):
        again = recorded(f"{name}_again")
        for what, row in recorded(name).items():
            ratio, low, high = (f"{row[key]:.3g}" for key in ("ratio", "low", "high"))
            repeated = f"{again[what]['ratio']:.3g}" if what in again else "n/a"
            goal = (row["goal"] or "").replace(">=", "≥").replace("<=", "≤")
            rows.append((what, ratio, f"{low} – {high}", repeated, goal, verdicts[row["met"]]))
    return markdown(["what", "ratio:", "rounds:", "again:", "goal:", ""], rows)


def of_recipe(name: str, form: Callable[[measured.Record], str]) -> Callable[[], str]:
    """A part that shows what was measured for configs/<name>.yaml."""

    def part() -> str:
        record = measured.read(name)
        return "Not measured yet." if record is None else form(record)

    return part


def of_types(form: Callable[[measured.FusionTypes], str]) -> Callable[[], str]:
    """A part that shows what was measured of all fusion types."""

    def part() -> str:
        record = measured.read_types()
        return "Not measured yet." if record is None else form(record)

    return part


PARTS: dict[str, Callable[[], str]] = {
    "fields": fields,
    "models": models,
    "architectures": architectures,
    "published": published,
    "verbs": verb_table,
    "help": helps,
    "rooms": rooms,
    "speeds": speeds,
    "chaos": measured.chaos,
    "demo results": of_recipe("demo", measured.results),
    "demo conditions": of_recipe("demo", measured.conditions),
    "cifar10 results": of_recipe("cifar10_images", measured.results),
    "cifar10 conditions": of_recipe("cifar10_images", measured.conditions),
    "fusion types": of_types(measured.fusion_types),
    "types against each other": of_types(measured.against_best),
    "frozen features": of_types(measured.frozen_features),
    "controls": of_types(measured.controls),
    "types conditions": of_types(measured.types_conditions),
}


def main() -> None:
    for path in [*pages(), *sorted((ROOT / "configs").glob("*.yaml"))]:
        text = renewed(path)
        if text != path.read_text():
            path.write_text(text)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
