import subprocess
from pathlib import Path

import pytest

from gradinv import environment


def git(*arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def package(monkeypatch):
    """A git repository with one commit, and this module in an environment below it."""
    git("init", "-q", ".")
    Path("README").write_text("mine")
    git("add", "README")
    git("commit", "-qm", "first")
    folder = Path("venv", "gradinv")
    folder.mkdir(parents=True)
    (folder / "environment.py").write_text("")
    monkeypatch.setattr(environment, "__file__", str(folder.resolve() / "environment.py"))
    return folder


def test_the_revision_of_somebody_elses_repository_is_none_of_ours(package):
    assert environment.revision() == "unknown"
    Path(".gitignore").write_text("venv\n")
    assert environment.revision() == "unknown"


def test_the_revision_of_the_repository_that_holds_the_source(package):
    git("add", "venv")
    git("commit", "-qm", "second")
    head = git("rev-parse", "--short=12", "HEAD")
    assert environment.revision() == head
    (package / "environment.py").write_text("changed")
    assert environment.revision() == f"{head}-dirty"


def test_no_repository_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    assert environment.revision() == "unknown"


def test_no_git_at_all(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.revision() == "unknown"
