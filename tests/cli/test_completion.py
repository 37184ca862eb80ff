"""What a shell completes: commands, options, names."""

import re
import subprocess

import pytest

from dualprop.cli import COMMANDS, completion
from dualprop.recipes import RECIPES
from dualprop.rules import RULES

ASK = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
$(complete -p dualprop | sed -E 's/.*-F ([^ ]+) .*/\\1/') 2> /dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """completed(words): what bash offers for the last of them."""
    import shtab

    script = tmp_path_factory.mktemp("completion") / "dualprop"
    script.write_text(shtab.complete(completion.parser(), shell="bash"))

    def ask(*words):
        command = ["bash", "-c", ASK, "bash", script, "dualprop", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    return ask


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("",), set(COMMANDS)),
        (("train", "--rule", ""), set(RULES)),
        (("train", "mnist-mlp", "--rule.be"), {"--rule.beta"}),
        (("compare", "cifar10-f"), {name for name in RECIPES if name.startswith("cifar10-f")}),
        (("export", "--form"), {"--format"}),
        (("list", "re"), {"recipes"}),
    ],
)
def test_bash_offers_what_can_stand_there(words, offered, completed):
    """The words are the command's own, so that none is missing."""
    assert set(completed(*words)) == offered


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_each_shell_has_a_script_that_knows_every_command(shell, dualprop):
    answer = dualprop("completion", shell)
    assert (answer.code, answer.err) == (0, "")
    assert all(name in answer.out for name in COMMANDS)


@pytest.mark.parametrize(("command", "option"), [("train", "--twin"), ("reproduce", "--minutes"), ("predict", "--out")])
def test_the_options_of_the_help_are_completed(command, option, dualprop, completed):
    """A table of options by hand would forget the newest."""
    shown = dualprop(command, "--help").out
    assert option in shown
    offered = completed(command, "--")
    assert set(re.findall(r"(?<=[│ ])--[a-z][a-z.-]*[a-z](?= )", shown)) <= set(offered)


def test_an_unknown_shell_is_told_in_one_line(dualprop):
    answer = dualprop("completion", "bush")
    assert answer.code == 2
    assert "Did you mean 'bash'?" in answer.err
