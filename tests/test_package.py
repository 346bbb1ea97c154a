"""What ``import gradinv`` gives, and what it costs."""

import inspect
import subprocess
import sys

import pytest

import gradinv

LIMIT = 0.2  # seconds; torch alone takes more than a second


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_importing_it_takes_no_time():
    code = "import time; t = time.perf_counter(); import gradinv; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(3)) < LIMIT


def test_importing_it_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'rich', 'jinja2', 'scipy', 'pydantic'}"
    assert run(f"import sys, gradinv; print({heavy} & set(sys.modules))") == "set()"


@pytest.mark.parametrize("name", gradinv.__all__)
def test_every_name_is_there(name):
    assert getattr(gradinv, name) is not None
    assert name in dir(gradinv)


def test_a_name_that_is_not():
    with pytest.raises(AttributeError, match="module 'gradinv' has no attribute 'invent'"):
        gradinv.invent  # noqa: B018


def test_audit_is_a_package_and_a_function():
    from gradinv.audit.plan import AuditConfig

    assert AuditConfig is not None
    assert list(inspect.signature(gradinv.audit).parameters)[:3] == ["model", "images", "labels"]
    code = "import gradinv.audit.plan, gradinv; print(callable(gradinv.audit))"
    assert run(code) == "True"
