"""What the documents say exists, exists; what they say of the code and of measurements is so."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import fusionrun
from fusionrun.experts import BUILDERS
from fusionrun.fusions import FUSIONS
from fusionrun.study.recipe import Recipe
from fusionrun.study.recipe_yaml import load_recipe
from tests import generated_docs
from tests.contract.test_layers import MODULES
from tests.tiny import ROOT

PAGES = generated_docs.pages()
TEXTS = {path: path.read_text() for path in PAGES}
README = ROOT / "README.md"
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
VERBS = generated_docs.verbs()
FIELDS = {field.name for field in dataclasses.fields(Recipe)}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
OVERRIDE = re.compile(r"(?!key=value$)[a-z_]+(\.\w+)*=.+")

# The headings of the card that this system was asked for with.
ASKED = """Overview
Architecture
GPU assignment
Model architectures
Fusion types
Quick start
File structure
Training scripts
Expected results
Key features
Monitoring & analysis
Important notes
Prerequisites
Troubleshooting
Success indicators
Next steps""".splitlines()
ASKED_BELOW = """Performance improvements
Training time
Parallel processing
Adaptive learning rates
Knowledge transfer
Comprehensive logging
Independent component saving
Real-time monitoring
CSV
Weights & Biases
Resource requirements
Expected output structure
Import errors
Checkpoint not found
GPU memory
Slurm job
Training completion
Performance metrics
Output verification""".splitlines()


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "`code`", FENCE.sub("", text))


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)


def anchor(heading: str) -> str:
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def titles(text: str) -> set[str]:
    """What a reader's eye finds: headings, words of links, bold words."""
    found = [*headings(text), *(words for words, _ in LINK.findall(text))]
    found += re.findall(r"\*\*(.+?)\*\*", text)
    return {" ".join(title.split()).lower().rstrip(".:") for title in found}


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command, in blocks and within lines."""
    for language, block in FENCE.findall(text):
        if language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                yield shlex.split(line, comments=True)
    for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        if re.match(r"(bash|sbatch|srun|fusionrun|python|torchrun|RANKS=)", code):
            yield shlex.split(code.replace("\n", " "))


def fusionrun_words(words: list[str]) -> tuple[str, list[str]] | None:
    """(verb, its words) of a command that runs fusionrun."""
    for index, word in enumerate(words):
        rest = words[index + 1 :]
        if word.endswith("launch.sh"):
            return (rest[0], rest[1:]) if rest and rest[0] in VERBS else ("train", rest)
        if word == "fusionrun" or word.endswith("/fusionrun"):
            return (rest[0], rest[1:]) if rest else None
    return None


ALL_COMMANDS = [(path, words) for path, text in TEXTS.items() for words in commands(text)]


@pytest.mark.parametrize("page", names(PAGES))
def test_links_lead_somewhere(page: str) -> None:
    text = TEXTS[ROOT / page]
    for _, target in LINK.findall(without_code(text)):
        if re.match(r"https?:", target):
            continue
        name, _, fragment = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if fragment:
            assert fragment in map(anchor, headings(path.read_text())), f"{page}: {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {target.partition("#")[0] for _, target in LINK.findall(TEXTS[README])}
    missing = {name for name in names(PAGES) if name != "README.md"} - linked
    assert not missing


def test_commands_are_the_programs_own() -> None:
    found = set()
    for path, words in ALL_COMMANDS:
        called = fusionrun_words(words)
        if called is None:
            continue
        verb, rest = called
        if verb in ("VERB", "COMMAND"):
            continue
        assert verb in VERBS, f"{path.name}: {' '.join(words)}"
        flags = {word.partition("=")[0] for word in rest if word.startswith("--")}
        known = {flag for action in VERBS[verb]._actions for flag in action.option_strings}
        assert flags <= known, f"{path.name}: {' '.join(words)}"
        found.add(verb)
    assert found == set(VERBS)


def test_commands_of_the_tests_exist() -> None:
    found = set()
    for path, words in ALL_COMMANDS:
        if words[:2] != ["python", "-m"] or not words[2].startswith("tests."):
            continue
        module = ROOT.joinpath(*words[2].split("."))
        source = module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
        assert source.is_file(), f"{path.name}: {' '.join(words)}"
        for word in words[3:]:
            assert not word.startswith("--") or f'"{word}"' in source.read_text(), (path, word)
        found.add(words[2])
    assert {"tests.bench", "tests.chaos", "tests.figures", "tests.generated_docs"} <= found


def test_overrides_are_fields_of_the_recipe() -> None:
    count = 0
    for _, words in ALL_COMMANDS:
        called = fusionrun_words(words)
        overrides = [word for word in called[1] if OVERRIDE.fullmatch(word)] if called else []
        if overrides:
            load_recipe(ROOT / "configs/demo.yaml", overrides)
            count += 1
    for text in TEXTS.values():
        for code in re.findall(r"`'?([^`\n]+?)'?`", FENCE.sub("", text)):
            if OVERRIDE.fullmatch(code) and code.split("=")[0].split(".")[0] in FIELDS:
                load_recipe(ROOT / "configs/demo.yaml", [code])
                count += 1
    assert count > 25


def test_recipes_that_are_named_are_shipped_and_all_are_named() -> None:
    shipped = {f"configs/{path.name}" for path in RECIPES}
    for text in TEXTS.values():
        assert set(re.findall(r"configs/\w+\.yaml", text)) <= shipped
    for page in ("README.md", "docs/recipes.md"):
        assert set(re.findall(r"configs/\w+\.yaml", TEXTS[ROOT / page])) == shipped


def test_files_of_the_package_that_are_named_exist() -> None:
    for path, text in TEXTS.items():
        for name in re.findall(r"`((?:fusionrun|tests)/[\w/.]*)`", text):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_every_recipe_opens_with_what_how_and_what_to_expect() -> None:
    for path in RECIPES:
        head = path.read_text().split("output_dir:")[0]
        assert head.startswith("# Trains "), path
        assert f"configs/{path.name}" in head or "bash launch.sh\n" in head, path
        assert "# Time:" in head and "# Result:" in head, path


def test_every_architecture_and_fusion_is_named() -> None:
    for page in ("README.md", "docs/recipes.md"):
        assert all(f"`{name}`" in TEXTS[ROOT / page] for name in [*BUILDERS, *FUSIONS])


def test_every_field_says_what_it_means() -> None:
    lines = generated_docs.fields().splitlines()
    assert not [line for line in lines if line.startswith("|") and line.endswith("|  |")]


def test_every_room_is_in_the_tree_of_the_architecture() -> None:
    tree = FENCE.findall(TEXTS[ROOT / "docs/architecture.md"])[0][1]
    rooms = {name.split(".")[0] for name in MODULES if name and not name.startswith("__")}
    missing = {room for room in rooms if f"{room}/" not in tree and f"{room}.py" not in tree}
    assert not missing


@pytest.mark.parametrize("page", names([*PAGES, *RECIPES]))
def test_generated_parts_are_up_to_date(page: str) -> None:
    """Else run `python -m tests.generated_docs`."""
    assert (ROOT / page).read_text() == generated_docs.renewed(ROOT / page)


def test_every_generated_part_is_shown() -> None:
    shown = {found[1] for text in TEXTS.values() for found in generated_docs.PLACE.findall(text)}
    assert shown == set(generated_docs.PARTS)


def test_the_readme_is_two_screens_with_its_commands_on_the_first() -> None:
    text = TEXTS[README]
    assert len(text.split()) <= 1200
    first = text[:1500]
    assert "bash launch.sh" in first and "bash tests/run.sh" in first and "![" in first


def test_what_was_asked_for_is_found_from_the_readme() -> None:
    own = titles(TEXTS[README])
    assert not [title for title in ASKED if title.lower() not in own]
    linked = {target.partition("#")[0] for _, target in LINK.findall(TEXTS[README])}
    below = own.union(*(titles(TEXTS[ROOT / n]) for n in linked if ROOT / n in TEXTS))
    assert not [title for title in ASKED_BELOW if title.lower() not in below]


def test_the_changelog_begins_with_this_version() -> None:
    newest = re.findall(r"^## \[(.+?)\]", TEXTS[ROOT / "CHANGELOG.md"], re.MULTILINE)[0]
    assert newest == fusionrun.__version__
