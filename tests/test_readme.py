"""The README's Python runs, and its commands name options that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from unbackdoor import cli

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^unbackdoor (\w+)(.*)$", README, re.MULTILINE)


def test_the_python_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict = {}
    exec(example, scope)
    assert list(scope["result"].model.state_dict()) == list(scope["model"].state_dict())


@pytest.mark.parametrize("name, arguments", COMMANDS, ids=[name for name, _ in COMMANDS])
def test_the_commands_have_these_options(name: str, arguments: str) -> None:
    group = typer.main.get_command(cli.app)
    known = {option for item in group.commands[name].params for option in item.opts}
    assert set(re.findall(r"--[a-z-]+", arguments)) <= known
