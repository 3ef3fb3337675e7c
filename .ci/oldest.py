"""Print the constraints with which pip installs the oldest version of each package that pyproject.toml admits.

That is what the build and the tests need: `>=` becomes `==`.
"""

import pathlib
import re

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ROOT = pathlib.Path(__file__).parent.parent


def requirements(project, extra):
    """Yield what an extra requires, including the other extras of this project that it names."""
    for requirement in project["optional-dependencies"][extra]:
        own = re.fullmatch(rf"{project['name']}\[(.+)\]", requirement)
        if own:
            for name in own[1].split(","):
                yield from requirements(project, name)
        else:
            yield requirement


if __name__ == "__main__":
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {
        *pyproject["build-system"]["requires"],
        *pyproject["project"]["dependencies"],
        *requirements(pyproject["project"], "test"),
    }
    # Constraints have no extras.
    print("\n".join(sorted(re.sub(r"\[.*?\]", "", requirement.replace(">=", "==", 1)) for requirement in needed)))
