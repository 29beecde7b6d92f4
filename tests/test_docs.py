"""Every `mae-bench` command in the docs, the README and CONTRIBUTING is one that exists.

Commands in code blocks are run where that is cheap: what trains is planned (`--dry-run`), reports
are made of a small work folder. What needs a published dataset, a cluster or pictures is parsed.
Pages on backbones and frameworks are run as they stand by tests/test_docs_backbones.py.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import shelf
import torch
import typer.main

from backbones import create_backbone
from backbones.checkpoints import save_backbone
from mae_bench.cli import app, main

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
RUN_ELSEWHERE = {"backbones.md", "frameworks.md"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`(mae-bench [^`\n]+)`")
LINK = re.compile(r"\]\(([^)#:]*)(#[^)]*)?\)")
PLANNED = ("reproduce", "pretrain", "transfer")
# These need what a test does not have, or have tests of their own; the parser must take them.
PARSED = (
    "doctor",
    "visualize",
    "data verify",
    "data prepare",
    "status --watch",
    "backbones inspect",
)
# "mae-bench reproduce TABLE...", "--only FIELD=GLOB": placeholders in running text.
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b|\.\.\.|[<…]")


def commands(page: Path) -> Iterator[str]:
    """Commands of code blocks, continued lines joined, without comments."""
    for language, text in FENCE.findall(page.read_text()):
        joined = re.sub(r"\\\n\s*", "", text)
        for line in joined.splitlines():
            start = re.match(r"(?:- run: )?(mae-bench .*)", line.strip())
            if start and language != "python":
                yield shlex.join(shlex.split(start[1], comments=True)[1:])


def spans(page: Path) -> Iterator[str]:
    """Commands in running text that can be given as they stand."""
    for text in SPAN.findall(FENCE.sub("", page.read_text())):
        if not PLACEHOLDER.search(text):
            yield shlex.join(shlex.split(text)[1:])


ALL = list(dict.fromkeys((page.name, line) for page in PAGES for line in commands(page)))
IN_TEXT = list(dict.fromkeys((page.name, line) for page in PAGES for line in spans(page)))


def parse(arguments: list[str]) -> None:
    """Have the command line read these arguments without acting on them."""
    command: click.Command = typer.main.get_command(app)
    parent = None
    while True:
        with command.make_context(command.name, list(arguments), parent=parent) as context:
            rest = [*context._protected_args, *context.args]  # what a group hands on
            if not hasattr(command, "commands"):
                return
            arguments, parent = rest[1:], context
            command = command.commands[rest[0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with everything that the commands name."""
    root = tmp_path_factory.mktemp("docs")
    encoder = create_backbone("vit_mini_patch8")
    save_backbone(encoder, root / "backbone.safetensors", {"backbone": "vit_mini_patch8"})
    for _, line in ALL:
        for name in re.findall(r"[\w.]+\.(?:safetensors|pth|pkl)\b", line):
            path = root / name
            if not path.exists():
                torch.save({"model": encoder.state_dict()}, path)
    shelf.fill(root / "work_dirs", seeds=(5,))
    shelf.fill(root / "lab-a", seeds=(0,))
    shelf.fill(root / "lab-b", seeds=(1,))
    shelf.fill(root / "lab-c", seeds=(2,))
    for lab, form in (("b", "records"), ("c", "json")):
        out = ["--out", str(root / f"lab-{lab}"), "--format", form]
        assert main(["report", "--work-dir", str(root / f"lab-{lab}"), *out]) == 0
    shutil.copytree(root / "lab-b" / "records", root / "records")
    return root


def run(line: str) -> tuple[int, ...]:
    """Do what a command says, or as much of it as is cheap; returns (exit code,), () if none."""
    arguments = shlex.split(line)
    if line.startswith(PARSED) or "--since" in arguments or "/shared" in line:
        return ()
    if arguments[0] in PLANNED:
        arguments += [] if "--dry-run" in arguments else ["--dry-run"]
    return (main(arguments),)


@pytest.mark.parametrize(("page", "line"), ALL, ids=[f"{page}: {line}" for page, line in ALL])
def test_command(
    page: str, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    parse(shlex.split(line))
    if page in RUN_ELSEWHERE:
        return
    monkeypatch.chdir(folder)
    changes = "--compare" in line  # one seed gone, another new
    assert all(code == int(changes) for code in run(line)), capsys.readouterr().err


@pytest.mark.parametrize(("page", "line"), IN_TEXT, ids=[line for _, line in IN_TEXT])
def test_command_in_running_text(page: str, line: str) -> None:
    try:
        parse(shlex.split(line))
    except Exception as error:  # a verb alone, as the name of what is talked about
        assert type(error).__name__ == "MissingParameter" and "-" not in line, line


def test_there_are_commands_and_a_wrong_one_is_noticed() -> None:
    assert len(ALL) > 50 and len(IN_TEXT) > 10
    for wrong in ("reproduce table4 --no-such-option", "data verfy", "report --compare one"):
        with pytest.raises(Exception, match=r"(?i)no such option|verfy|requires 2 arguments"):
            parse(shlex.split(wrong))


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            slugs = {
                re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles
            }
            assert anchor[1:] in slugs, f"{target}{anchor}"


def test_every_page_is_reached_from_the_readme_or_the_quick_start() -> None:
    seen: set[Path] = set()
    ahead = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        links = (target for target, _ in LINK.findall(page.read_text()) if target.endswith(".md"))
        ahead += [
            path for target in links if (path := (page.parent / target).resolve()) not in seen
        ]
    assert set(PAGES) <= seen


def test_the_table_of_the_page_on_extending_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "extending.md", "exec"), names)
    from mae_bench.plan import make_plan

    assert len(make_plan([names["TABLE"]], "mini", [0], tmp_path).cells) == 2
