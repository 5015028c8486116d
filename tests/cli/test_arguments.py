"""Flags, types of arguments, and what the parser says of a mistake."""

import inspect
from typing import Any

import pytest
from commands import mistake

from sb3_qpd import QPDDistiller
from sb3_qpd.cli import main, make_parser
from sb3_qpd.cli.arguments import architecture, key_value
from sb3_qpd.cli.hyperparameters import LEFT_OUT, distiller_arguments, flag_names, hyperparameters, take_entry
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.students.architectures import make_arch
from sb3_qpd.version import __version__


def test_every_hyperparameter_has_a_flag() -> None:
    """The flags are read from the source text: they are those of the class, with its types and defaults."""
    signature = inspect.signature(QPDDistiller).parameters
    read = {one.name: one for one in hyperparameters()}
    assert list(read) == list(signature)
    for name, parameter in signature.items():
        assert read[name].annotation == str(parameter.annotation) and read[name].default == parameter.default, name
        assert read[name].help or name in LEFT_OUT, name
    assert set(signature) == set(LEFT_OUT) | set(flag_names())
    options = make_parser().parse_args(["compress", "teacher.zip", "--out", "out"])
    assert all(hasattr(options, name) for name in flag_names())


@pytest.mark.parametrize("text", ['{"hidden": [12, 12]}', "{'hidden': [12, 12]}", "{'hidden': (12, 12)}"])
def test_an_architecture_is_json_or_python(text: str) -> None:
    assert make_arch(architecture(text)).hidden == (12, 12)


def test_flags_become_arguments() -> None:
    flags = {
        "--student-arch": ('{"hidden": [12, 12]}', {"hidden": [12, 12]}),
        "--weight-bits": ("8,4,8", (8, 4, 8)),
        "--buffer-size": ("1e6", 1_000_000),
        "--learning-rate": ("1e-3", 1e-3),
        "--box-loss": ("huber", "huber"),
        "--n-envs": ("8", 8),
    }
    given = [word for flag, (text, _) in flags.items() for word in (flag, text)]
    options = make_parser().parse_args(
        ["compress", "teacher.zip", "--out", "out", *given, "--no-roll-in", "--timesteps", "2e5"]
    )
    for flag, (_, expected) in flags.items():
        assert getattr(options, flag.strip("-").replace("-", "_")) == expected
    assert options.roll_in is False and options.check_teacher is None and options.timesteps == 200_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gravity=-9.5", ("gravity", -9.5)),
        ("continuous:True", ("continuous", True)),
        ("render_mode=rgb_array", ("render_mode", "rgb_array")),
        ("size=(3, 4)", ("size", (3, 4))),
        ("map=a:b", ("map", "a:b")),
    ],
)
def test_key_value(text: str, expected: tuple[str, Any]) -> None:
    assert key_value(text) == expected


UNKNOWN = [
    (
        "compress x.zip --out o --bits 4",
        "--bits 4 (did you mean --weight-bits or --activation-bits?). See sb3-qpd compress --help",
    ),
    ("compress x.zip --out o --arch nano", "--arch nano (did you mean --student-arch?)"),
    ("compress x.zip --out o --sede 3", "--sede 3 (did you mean --seed or"),
    ("evaluate x.zip --episode-count 3", "--episode-count 3 (did you mean --episodes or"),
    ("compress x.zip --out o --seed 0 1 2", "unexpected arguments after --seed, which takes fewer values: 1 2"),
    ("verify a b", "unexpected arguments: b. See sb3-qpd verify --help"),
    ("compres x.zip", "invalid choice: 'compres'"),
    ("evaluate x.zip --env-kwargs render_mode='human'", "render_mode is not for this command"),
    ("evaluate x.zip --episodes 1.5", "expected a whole number of at least 1, such as 1000, got '1.5'"),
    ("evaluate x.zip --seed -1", "expected a whole number from 0 to"),
    ("compress x.zip --out o --timesteps 1e15", "expected a whole number from 1 to 1e+11"),
    ("compress x.zip --out o --n-envs 100000", "expected a whole number from 1 to 4096"),
    ("evaluate x.zip --n-envs 1e5", "expected a whole number from 1 to 4096"),
    ("compress x.zip --out o --buffer-size many", "argument --buffer-size: expected a whole number of at least 1"),
    ("compress x.zip --out o --beta half", "argument --beta: expected a number, such as 0.5 or 1e-3, got 'half'"),
    ("compress x.zip --out o --weight-bits 8,x", "expected bits such as 8, or 8,4,4 for each layer, got '8,x'"),
    ("compress x.zip --out o --student-arch {hidden", "expected a name such as tiny, or JSON"),
    ("compress x.zip --out o --student-arch tinny", "Unknown --student-arch 'tinny'. Known: nano, tiny"),
    ('compress x.zip --out o --student-arch {"hiden":[9]}', "--student-arch takes the fields 'hidden', 'conv', 'conv_hidden'"),
    ('compress x.zip --out o --student-arch {"hidden":[9,0]}', "--student-arch: hidden takes positive integers, got (9, 0)"),
    ("compress x.zip --out o --steps 9", "did you mean --timesteps or"),
    ("compress x.zip --out o --vecnormalize none.pkl", "no such file: none.pkl"),
    ("benchmark o --seconds 0", "expected a number above zero, got '0'"),
    ("compress x.zip --out o --require equal", "invalid choice: 'equal'"),
]


@pytest.mark.parametrize(("line", "message"), UNKNOWN, ids=[line for line, _ in UNKNOWN])
def test_mistakes_in_arguments(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in mistake(capsys, *line.split())


@pytest.mark.parametrize("text", ["1000", "1e3", "1_000", "1000.0"])
def test_whole_numbers(text: str) -> None:
    assert make_parser().parse_args(["evaluate", "x.zip", "--episodes", text]).episodes == 1_000
    assert make_parser().parse_args(["verify", "x", "--observations", text]).observations == 1_000


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0 and capsys.readouterr().out == f"sb3-qpd {__version__}\n"


def test_help_explains_environments_of_other_packages(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("compress", "evaluate", "export", "verify", "benchmark"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "my_envs:Cart-v0" in capsys.readouterr().out


def test_a_learning_rate_is_the_first_of_a_cosine() -> None:
    """The flag gives a cosine, as its help says. ``QPDDistiller`` itself reads a number as a constant rate, as SB3 does."""
    args = make_parser().parse_args(["compress", "teacher.zip", "--out", "out", "--learning-rate", "1e-2"])
    schedule = distiller_arguments(args)["learning_rate"]
    assert [schedule(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([1e-2, 5e-3, 0])
    args = make_parser().parse_args(["compress", "teacher.zip", "--out", "out"])
    assert "learning_rate" not in distiller_arguments(args)


def test_a_game_has_an_entry_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """A game's own entry counts, as in RL Zoo. ``atari`` is for all other games. A cosine is what the flag would give."""
    first = {}
    for game in ("BreakoutNoFrameskip-v4", "PongNoFrameskip-v4"):
        args = make_parser().parse_args(["compress", "teacher.zip", "--out", "out"])
        take_entry(args, EnvRecipe(game))
        schedule = distiller_arguments(args).get("learning_rate")
        first[game] = args.timesteps, args.temperature, None if schedule is None else schedule(1.0)
    assert first == {"BreakoutNoFrameskip-v4": (500_000, 0.4, 0.025), "PongNoFrameskip-v4": (100_000, 0.4, None)}
    told = capsys.readouterr().out
    assert "From the entry BreakoutNoFrameskip-v4 of" in told and "From the entry atari of" in told
