"""Build the documentation site in build/site: `python docs/build.py`. Any warning is an error.

The pages of docs, and the files outside it that they link to, are copied to build/pages, where zensical reads them. On
the way

- links to files outside docs become links to their copies,
- `::: rnnfast.NAME` becomes the module in which the public name is defined, since names are imported lazily,
- `$ rnnfast ... --help` is followed by its output.
"""

import inspect
import os
import pathlib
import posixpath
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
STAGE = ROOT / "build" / "pages"
SITE = ROOT / "build" / "site"
ALSO = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "models/README.md")
"""Pages outside docs that the navigation names."""

CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]*`)", re.M | re.S)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def links(text):
    """The targets of the relative links and images of a page, without anchors; code is skipped."""
    targets = (target for part in CODE.split(text)[::2] for _, _, target in LINK.findall(part))
    return [path for target in targets if not is_absolute(target) and (path := target.partition("#")[0])]


def is_absolute(target):
    return re.match(r"[a-z]+:", target) is not None


def staged(path):
    """The path in the site's pages of a file of the project; both relative to their roots."""
    return path.removeprefix("docs/") if path.startswith("docs/") else path


def rewritten(text, path, copied):
    """The text of the page at `path` with its links as they are among the staged pages; `copied` gets their targets."""

    def replace(match):
        mark, label, target = match.groups()
        file, hash_mark, anchor = target.partition("#")
        if is_absolute(target) or not file:
            return match[0]
        found = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
        if found == "README.md":
            found = "docs/index.md"
        if not (ROOT / found).is_file():
            if (ROOT / found).is_dir():
                return label  # a folder has no page
            raise SystemExit(f"{path}: dead link to {target}")
        copied.add(found)
        file = posixpath.relpath(staged(found), posixpath.dirname(staged(path)) or ".")
        return f"{mark}[{label}]({file}{hash_mark}{anchor})"

    return "".join(
        part if i % 2 else LINK.sub(replace, part)  # the odd parts are code
        for i, part in enumerate(CODE.split(text))
    )


def documented(match):
    """What stands in the place of `::: NAME`: mkdocstrings' block, or text made here for a compiled function."""
    name = match[1]
    value = resolve(name)
    last = name.rpartition(".")[2]
    module = getattr(value, "__module__", None) or name.rpartition(".")[0]
    source = getattr(sys.modules[module], "__file__", "")
    if source.endswith(".py"):
        path = f"{module}.{getattr(value, '__qualname__', last)}"
        return f"::: {path}\n    options:\n      heading: {public(name)}\n      toc_label: {last}"
    text = inspect.cleandoc(value.__doc__ or "").removeprefix(f"{last}{inspect.signature(value)}").lstrip()
    return f"### {public(name)}\n\n```python\n{last}{inspect.signature(value)}\n```\n\n{text}"


def public(name):
    """A name as users write it: methods of internal classes are those of what the public names return."""
    return name.rpartition(".")[2] if name.startswith("rnnfast.streaming.") else name


def resolve(name):
    """The object of a dotted name."""
    parts = name.split(".")
    value = __import__(parts[0])
    for i, part in enumerate(parts[1:], 2):
        if not hasattr(value, part):
            __import__(".".join(parts[:i]))
        value = getattr(value, part)
    return value


def with_help(match):
    """A command line whose output is its help, and that output."""
    command = match[1].split()
    output = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
    ).stdout
    return f"$ {match[1]}\n{output}"


def stage():
    """Write all pages, and what they link to, to build/pages."""
    shutil.rmtree(STAGE, ignore_errors=True)
    waiting = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")} | set(ALSO)
    done = set()
    while waiting - done:
        path = min(waiting - done)
        done.add(path)
        target = STAGE / staged(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not path.endswith(".md"):
            shutil.copyfile(ROOT / path, target)
            continue
        text = rewritten((ROOT / path).read_text(), path, waiting)
        text = re.sub(r"^::: ([\w.]+)$", documented, text, flags=re.M)
        text = re.sub(r"^\$ (rnnfast .*--help)$", with_help, text, flags=re.M)
        target.write_text(text)


def decisions(config):
    """The configuration with the pages of docs/decisions listed, the newest number last."""
    pages = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    listed = ", ".join(f'"decisions/{name}"' for name in pages)
    return config.replace('"decisions/"', f"[{listed}]")


def main():
    stage()
    shutil.rmtree(SITE, ignore_errors=True)
    config = ROOT / "build" / "zensical.toml"
    config.write_text(decisions((ROOT / "docs" / "zensical.toml").read_text()))
    result = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT / "build",
        env=os.environ | {"NO_COLOR": "1"},
    )
    # Messages of griffe, which reads the docstrings, are no warnings to zensical.
    if result.returncode or re.search(r"^(griffe|mkdocstrings): ", result.stdout, re.M):
        sys.exit(result.stdout + "docs/build.py: warnings are errors")
    print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
