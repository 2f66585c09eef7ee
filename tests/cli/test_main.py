import argparse
import contextlib
import io
import os
import platform
from importlib.metadata import version

import pytest

from mlxd import __version__, cli
from mlxd.cli import main
from mlxd.core import places
from tests.support.command import mlxd
from tests.support.homeless import homeless


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first == f"mlxd {__version__}"
    told = dict(line.split(" ", 1) for line in others)
    assert told["mlx"] == version("mlx")
    assert told["mlx-lm"] == version("mlx-lm")
    assert told["python"] == platform.python_version()


@pytest.mark.parametrize("command", [["doctor"], ["policy", "init"], ["service", "status"]])
def test_a_user_without_a_home_gets_words(command, tmp_path, monkeypatch):
    homeless(monkeypatch)
    monkeypatch.setattr(places, "_usual_folders", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    done = mlxd(*command, environment={"PATH": os.defpath, "MLXD_STATE": str(tmp_path / "state")})
    assert done.returncode in (0, 1)
    assert done.stdout or done.stderr.startswith("mlxd: ")
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_ends_with_2(capsys):
    for wrong in ([], ["fly"], ["serve", "--nonsense"], ["policy"]):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 2
    assert "usage: mlxd" in capsys.readouterr().err


def test_a_wrong_policy_ends_with_2_and_names_its_line(tmp_path, capsys):
    (tmp_path / "limits.yaml").write_text("schema: mlxd/v1\nconcurrency:\n  max_in_flihgt: 5\n")
    assert main(["policy", "check", "--policies", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "limits.yaml:3:3: " in said
    assert "did you mean max_in_flight?" in said


def test_the_defaults_that_init_writes_are_valid_and_never_overwritten(tmp_path, capsys):
    folder = tmp_path / "policies"
    assert main(["policy", "init", "--policies", str(folder)]) == 0
    assert main(["policy", "check", "--policies", str(folder)]) == 0
    (folder / "limits.yaml").write_text("schema: mlxd/v1\n# mine\n")
    assert main(["policy", "init", "--policies", str(folder)]) == 0
    assert "# mine" in (folder / "limits.yaml").read_text()
    assert f"kept {folder}/limits.yaml" in capsys.readouterr().out


def names_in(parser: argparse.ArgumentParser) -> list[str]:
    (commands,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return list(commands.choices)


@pytest.mark.parametrize("names", [names for names, _ in cli._commands()], ids=",".join)
def test_a_command_is_described_alone_as_it_is_among_all(names):
    every = cli._parser()
    for name in names:
        alone = cli._parser(name)
        assert names_in(alone) == list(names)
        arguments = [name, "--help"]
        assert told(alone, arguments) == told(every, arguments)
    assert set(names) <= set(names_in(every))


def told(parser: argparse.ArgumentParser, arguments: list[str]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        parser.parse_args(arguments)
    return said.getvalue()


@pytest.mark.parametrize(
    "words",
    [
        ["explain"],
        ["load"],
        ["cp", "old"],
        ["pull"],
        ["unload"],
        ["models", "fit"],
        ["models", "rm"],
        ["logs", "--worker"],
        ["keys", "add"],
        ["keys", "add", "anna", "--note"],
        ["policy", "explain"],
        ["bench"],
    ],
    ids=" ".join,
)
def test_what_is_no_text_is_refused_in_one_line(words, tmp_path, capsys):
    assert main([*words, "\udcff\udcfe", "--state", str(tmp_path)]) == 2
    assert capsys.readouterr() == ("", "mlxd: \\udcff\\udcfe is no text: expected UTF-8\n")


def test_a_file_may_be_called_by_any_bytes(tmp_path, capsys):
    folder = tmp_path / "\udcff"
    assert main(["policy", "init", "--policies", str(folder)]) == 0
    assert main(["policy", "plan", str(folder / "limits.yaml"), "--policies", str(folder)]) == 0
