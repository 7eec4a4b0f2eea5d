"""The documentation: its Python runs, its commands parse, its links lead somewhere, and the site builds."""

import argparse
import doctest
import functools
import importlib.util
import os
import re
import shlex
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

pytest.importorskip("myst_parser", reason="the docs extra is not installed")
pytest.importorskip("lightning", reason="the joint extra is not installed")

from markdown_pages import PAGES, ROOT, anchors, blocks, code_spans, targets

from cosegflow import cli

MOST_NOT_RUN = 8
"""So many Python blocks of all pages may be left out, each with its reason."""
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
MAKEFILE = (ROOT / "Makefile").read_text()
OPTION = re.compile(r"(--[a-z][\w.-]*|-[a-z])(=.*)?", re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def as_it_was(monkeypatch, tmp_path):
    """An empty folder to work in; what a block sets for the whole process is undone."""
    compile_as_given = torch.compile

    @functools.wraps(compile_as_given)
    def compile_without_inductor(*args, backend="aot_eager", **options):
        return compile_as_given(*args, backend=backend, **options)  # Inductor would call g++: 10 s a function

    monkeypatch.setattr(torch, "compile", compile_without_inductor)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    threads, dtype, gradients = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    precision, environment = torch.get_float32_matmul_precision(), dict(os.environ)
    torch.set_num_threads(min(threads, 2))
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(gradients)
    torch.set_float32_matmul_precision(precision)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(False)
    torch.compiler.reset()
    os.environ.clear()
    os.environ.update(environment)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def run_block(block, namespace, capsys):
    """Runs a block in a namespace, and compares what it prints with what it says that it prints."""
    where = f"{name_of(block.page)}:{block.line}"
    if ">>>" in block.code:
        test = doctest.DocTestParser().get_doctest(block.code, namespace, where, where, block.line)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        failed, tried = runner.run(test, clear_globs=False)
        namespace.update(test.globs)
        assert tried > 0 and failed == 0, f"{where}: {capsys.readouterr().out}"
        return
    shifted = "\n" * (block.line - 1) + block.code  # tracebacks name the line of the page
    capsys.readouterr()
    exec(compile(shifted, str(block.page), "exec"), namespace)
    printed = iter(capsys.readouterr().out.splitlines())
    for expected in re.findall(r"# prints (.+)$", block.code, re.MULTILINE):
        assert expected.strip() in printed, f"{where}: did not print {expected.strip()!r}, in this order"


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_of_a_page_runs(page, as_it_was, capsys):
    namespace = {"__name__": "__page__"}
    for block in blocks(page):
        if block.language == "python" and block.not_run is None:
            run_block(block, namespace, capsys)


def test_few_blocks_are_not_run():
    left_out = [(name_of(b.page), b.line, b.not_run) for page in PAGES for b in blocks(page) if b.not_run is not None]
    assert all(len(reason) >= 10 for _, _, reason in left_out), left_out
    assert len(left_out) <= MOST_NOT_RUN, left_out


def test_a_wrong_output_is_seen(capsys):
    page = ROOT / "docs" / "start.md"
    block = next(b for b in blocks(page) if b.language == "python")._replace(code="print(1 + 1)  # prints 3")
    with pytest.raises(AssertionError, match="did not print '3'"):
        run_block(block, {}, capsys)
    with pytest.raises(AssertionError, match="Expected"):
        run_block(block._replace(code=">>> 1 + 1\n3\n"), {}, capsys)


def commands_of(code: str) -> list[str]:
    """The command lines of a console block: lines after "$ " where there are any, else all; without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [line.strip() for line in lines if line.strip()]


def words_of(command: str) -> list[str]:
    """The words of one command, without variables before it and what a pipe or redirection brings after it."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;<>"):
            break
        if words or not re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", word, re.DOTALL):
            words.append(word)
    return words


def check_make(words: list[str]) -> None:
    for word in words:
        variable, equals, _ = word.partition("=")
        if equals:
            assert re.search(rf"\b{variable}\b", MAKEFILE), f"make: no variable {variable}"
        else:
            assert re.search(rf"^{re.escape(word)}:", MAKEFILE, re.MULTILINE), f"make: no target {word}"


@functools.cache
def parser_of_all() -> argparse.ArgumentParser:
    return cli.make_parser()


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of the commands below it."""
    below = [a.choices.values() for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return set(parser._option_string_actions).union(*(options_of(p) for parsers in below for p in parsers))


def check_cosegflow(words: list[str], whole: bool) -> None:
    """The subcommand exists and knows each option; a `whole` command must also be accepted as it is."""
    parser = parser_of_all()
    commands = next(a for a in parser._actions if a.dest == "command").choices
    assert words and (words[0] in commands or words[0] in parser._option_string_actions), f"no command {words[:1]}"
    known = options_of(commands[words[0]]) if words[0] in commands else parser._option_string_actions
    given = [match[1] for match in map(OPTION.fullmatch, words) if match]
    assert not [option for option in given if option not in known], f"cosegflow {words[0]}: {given} are not all known"
    if whole:
        try:
            assert parser.parse_known_args(words)[1] == []
        except SystemExit as exit_:
            assert exit_.code == 0, f"cosegflow {' '.join(words)} is refused"


def check_command(command: str, whole: bool) -> bool:
    """Raises where a command of ours would not be accepted; whether it is one of ours."""
    words = words_of(command)
    if words[:1] == ["make"]:
        check_make(words[1:])
    elif words[:1] == ["cosegflow"]:
        check_cosegflow(words[1:], whole)
    elif words[:2] in (["python", "-m"], ["python3", "-m"]) and words[2:3] == ["cosegflow"]:
        own = (ROOT / "cosegflow" / "__main__.py").read_text()
        if len(words) == 3 or words[3] not in re.findall(r"\"(--[a-z-]+)\"", own):
            check_cosegflow(words[3:], whole)
    elif words[:2] in (["python", "-m"], ["python3", "-m"]) and words[2].startswith(("cosegflow.", "benchmarks.")):
        assert importlib.util.find_spec(words[2]) is not None, f"no module {words[2]}"
    else:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_parse(page, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    for block in blocks(page):
        if block.language in ("console", "sh", "bash", "shell"):
            for command in commands_of(block.code):
                check_command(command, whole=True)
    for span in code_spans(page):
        if span.startswith(("cosegflow ", "make ", "python -m cosegflow")) and "..." not in span:
            check_command(span, whole=False)


@pytest.mark.parametrize(
    "command",
    [
        "cosegflow train",
        "cosegflow fit --data.datset folder",
        "cosegflow bench --quik | less",
        "X=1 cosegflow match A.jpg",
        "make demos",
        "make test TROCH=torch",
        "python -m cosegflow.inf",
    ],
)
def test_a_wrong_command_is_seen(command):
    with pytest.raises(AssertionError):
        check_command(command, whole=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in targets(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target}: no such file"
        assert there.is_relative_to(ROOT), f"{target}: outside of the repository"
        if anchor:
            assert there.suffix == ".md" and anchor in anchors(there), f"{target}: no such heading"


def test_every_operation_has_its_page():
    import cosegflow

    pages = {page.stem for page in (ROOT / "docs" / "ops").glob("*.md")}
    assert pages == set(cosegflow.ops.__all__) - {"warmup"}
    for name in pages:
        text = (ROOT / "docs" / "ops" / f"{name}.md").read_text()
        picture = ROOT / "docs" / "images" / "ops" / f"{name}.webp"
        assert f"(../images/ops/{name}.webp)" in text and picture.stat().st_size <= 60_000
        assert "```python" in text and "## Limits" in text and f"`cosegflow.{name}(" in text


class Sources(HTMLParser):
    """What a page loads when it is shown: scripts, styles, icons, pictures, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        wanted = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data", "embed": "src"}
        if tag in wanted:
            self.found.append(values.get(wanted[tag]) or "")
        elif tag == "link" and values.get("rel") not in ("index", "search", "next", "prev", "canonical"):
            self.found.append(values.get("href") or "")
        self.found += re.findall(r"url\(([^)]*)\)", values.get("style") or "")


ELSEWHERE = re.compile(r"\s*[\"']?(https?:)?//")


# Of Sphinx's coming versions, for the authors of its extensions.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_site_builds_and_loads_nothing_from_elsewhere(tmp_path, monkeypatch, capfd):
    """One build for both: it takes seconds. Warnings are errors."""
    from sphinx.cmd.build import build_main

    monkeypatch.setattr(sys, "path", sys.path.copy())  # conf.py puts the checkout there
    code = build_main(
        ["-b", "html", "-W", "--keep-going", "-q", "-d", f"{tmp_path}/trees", f"{ROOT}/docs", f"{tmp_path}/html"]
    )
    assert code == 0, capfd.readouterr().err
    written = {path.relative_to(tmp_path / "html").with_suffix(".md") for path in (tmp_path / "html").rglob("*.html")}
    assert {page.relative_to(ROOT / "docs") for page in PAGES[1:]} <= written
    for path in (tmp_path / "html").rglob("*.html"):
        sources = Sources()
        sources.feed(path.read_text())
        assert len(sources.found) >= 3, f"{path.name}: the parser finds no scripts and styles"
        assert not [source for source in sources.found if ELSEWHERE.match(source)], path.name
    styles = list((tmp_path / "html").rglob("*.css"))
    assert styles
    for path in styles:
        loaded = re.findall(r"(?:url\(|@import)([^);]*)", path.read_text())
        assert not [source for source in loaded if ELSEWHERE.match(source)], path.name


def test_a_source_from_elsewhere_is_seen():
    sources = Sources()
    sources.feed(
        '<script src="https://host/x.js"></script><link rel="stylesheet" href="//host/y.css"><img src="z.png">'
    )
    assert [bool(ELSEWHERE.match(source)) for source in sources.found] == [True, True, False]
