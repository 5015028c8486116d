"""``sb3-qpd report``: results as a page."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_qpd.atomic import write_atomically
from sb3_qpd.cli.arguments import TEACHER_SOURCE, add_environment
from sb3_qpd.cli.errors import one_line, user_errors
from sb3_qpd.cli.models import check_environment
from sb3_qpd.cli.sources import check_teacher_source
from sb3_qpd.student_folder import COMMAND, FILM, PAGE, folder_of

if TYPE_CHECKING:
    from sb3_qpd.distillation.distiller import QPDDistiller
    from sb3_qpd.envs.recipe import EnvRecipe
    from sb3_qpd.integer import IntegerModel
    from sb3_qpd.players import Player
    from sb3_qpd.teachers.teacher import Teacher

COMPARISON = "comparison.html"


def add_report(commands: Any) -> None:
    """
    Add the command.

    :param commands: the subparsers of the program
    """
    parser = commands.add_parser(
        "report",
        help="the results of a folder as a page, or of several side by side",
        description="Make report.html anew from the JSON files in a folder that compress, frontier or zoo train wrote. "
        "Several folders give one page that compares them. The page is one file, without scripts, and fetches nothing.",
        examples=(
            "report lunar",
            "report lunar other --out both.html",
        ),
    )
    parser.set_defaults(run=report, device="cpu", env_for="to film an episode")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="result folders, or files in them")
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="FILE",
        help=f"the page (default: report.html in the one folder, {COMPARISON} in the current folder for several)",
    )
    parser.add_argument(
        "--film",
        default=None,
        metavar="TEACHER",
        help=f"film the student beside its teacher, and keep that as film.gif in the folder: {TEACHER_SOURCE}",
    )
    add_environment(parser)


def report(args: argparse.Namespace) -> int:
    """
    Make the page, and print its path.

    :param args: arguments of the command
    :return: exit code
    """
    with user_errors("report"):
        folders = [folder_of(folder) for folder in args.folders]
        if args.film is not None:
            if len(folders) > 1:
                raise ValueError("--film takes one folder: film each of them, then compare them")
            check_teacher_source(args.film, "--film")
            check_environment(args)
            _film_folder(folders[0], args)
        from sb3_qpd.pages.folders import write_page

        out = Path(COMPARISON) if args.out is None and len(folders) > 1 else args.out
        path = write_page(folders, out)
    print(f"Wrote {path}")
    return 0


def _film_folder(folder: Path, args: argparse.Namespace) -> None:
    from sb3_qpd.cli.models import open_folder
    from sb3_qpd.evaluation.verify import load_model

    args.teacher = args.film
    recipe, given = open_folder(folder, args)
    assert given.teacher is not None
    write_atomically(folder / FILM, film(given.teacher, load_model(folder), recipe))


def page_files(
    distiller: "QPDDistiller", report: dict[str, Any], command: str, *, with_page: bool, with_film: bool
) -> dict[str, bytes]:
    """
    The page of a run, the film in it, and the command. What cannot be made is left out, with a line that says why.

    :param distiller: the student
    :param report: contents of its ``report.json``
    :param command: the command line that made it
    :param with_page: make the page
    :param with_film: film teacher and student
    :return: contents of the files by their names
    """
    files = {COMMAND: f"{command}\n".encode()}
    try:
        if with_film:
            from sb3_qpd.envs.recipe import EnvRecipe

            assert distiller.teacher is not None
            files[FILM] = film(distiller.teacher, distiller.to_integer(), EnvRecipe.from_json(report["env"]))
    except ValueError as error:
        print(f"sb3-qpd compress: {one_line(error)}", file=sys.stderr)
    if not with_page:
        return files
    try:
        from sb3_qpd.pages.folders import page_of_report

        files[PAGE] = page_of_report(report, command, files.get(FILM)).encode()
    except Exception as error:  # of any kind: the student is learned, and the page can be made later
        print(f"sb3-qpd compress: no {PAGE}: {one_line(error)}. sb3-qpd report makes it", file=sys.stderr)
    return files


def film(teacher: "Teacher", model: "IntegerModel", recipe: "EnvRecipe") -> bytes:
    """
    A GIF of teacher and integer student side by side.

    :param teacher: the teacher
    :param model: its student
    :param recipe: their environment
    :raises ValueError: the environment does not render, or the film is too large
    """
    from sb3_qpd.publishing.film import side_by_side

    players: dict[str, Player] = {
        f"teacher, {teacher.nbytes:,} bytes" if teacher.nbytes else "teacher": teacher,
        f"integer student, {model.nbytes:,} bytes": model,
    }
    try:
        return side_by_side(players, recipe)
    except Exception as error:  # of any kind: renderers, drivers and missing packages raise their own
        raise ValueError(f"No film: {one_line(error)}") from error
