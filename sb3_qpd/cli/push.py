"""``sb3-qpd push``: publish a student on the Hub."""

import argparse
from typing import Any

from sb3_qpd.cli.errors import user_errors
from sb3_qpd.student_folder import folder_of


def add_push(commands: Any) -> None:
    """
    Add the command.

    :param commands: the subparsers of the program
    """
    parser = commands.add_parser(
        "push",
        help="publish a student on the Hugging Face Hub",
        description="Publish what compress and export wrote: the student's zip and .npz, its exports, its report, how it was "
        "made, and a model card with what was measured and a short film. Nothing that names a path of this machine is sent.",
        examples=(
            "push lunar --repo-id me/lunar-tiny",
            "push lunar --repo-id me/lunar-tiny --private --no-replay",
        ),
    )
    parser.set_defaults(run=push)
    parser.add_argument("folder", metavar="DIR", help="a folder that compress wrote, or a file in it")
    parser.add_argument("--repo-id", required=True, metavar="OWNER/NAME", help="where to; created where there is none")
    parser.add_argument("--private", action="store_true", default=None, help="of a new repository (default: the account's)")
    parser.add_argument("--branch", default=None, help="to commit to (default: main)")
    parser.add_argument("--message", default="A student distilled by sb3_qpd", help="of the commit")
    parser.add_argument("--no-replay", dest="replay", action="store_false", default=True, help="no film")


def push(args: argparse.Namespace) -> int:
    """
    Publish, and print the address.

    :param args: arguments of the command
    :return: exit code
    """
    with user_errors("push"):
        folder = folder_of(args.folder)
        from sb3_qpd.publishing.push import push_to_hub

        options = {name: getattr(args, name) for name in ("private", "branch", "message", "replay")}
        url, remarks = push_to_hub(folder, args.repo_id, **options)
    for remark in remarks:
        print(remark)
    print(f"Published {url}")
    return 0
