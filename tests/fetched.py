"""Packages of others, fetched from the index that pip knows, for slow tests."""

import subprocess


def pip(python, *arguments):
    return subprocess.run([python, "-m", "pip", *arguments, "-q", "--disable-pip-version-check"], capture_output=True)
