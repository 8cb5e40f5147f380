"""The program: arguments in, an exit code out (see `exit_codes`).

Every error of the client becomes a line on standard error and a code. Anything else is a defect: it keeps its traceback
and has its own code, so that no script takes it for an answer.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence

import click

from deepcoder_cli.app import COMPLETE_VARIABLE, app
from deepcoder_cli.exit_codes import Exit
from deepcoder_cli.terminal import say
from deepcoder_client.errors import (
    BadFile,
    BadName,
    ClientError,
    Forbidden,
    NoData,
    NotFound,
    NotInTime,
    NoToken,
    Refused,
    StorageError,
    Unknown,
    Unreachable,
)

CODES: dict[type[ClientError], Exit] = {
    BadFile: Exit.USAGE,
    BadName: Exit.USAGE,
    Forbidden: Exit.FORBIDDEN,
    NoData: Exit.NOT_FOUND,
    NotFound: Exit.NOT_FOUND,
    NoToken: Exit.USAGE,
    NotInTime: Exit.NOT_SO,
    Refused: Exit.REFUSED,
    StorageError: Exit.UNREACHABLE,
    Unknown: Exit.OTHER_RELEASE,
    Unreachable: Exit.UNREACHABLE,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # question marks replace what the terminal cannot encode
    try:
        done = app.main(arguments, "kubectl deepcoder", complete_var=COMPLETE_VARIABLE, standalone_mode=False)
        return int(done or 0)
    except SystemExit as ended:  # from click: 1 for a closed pipe, 0 after it has answered shell completion
        return Exit.CLOSED_PIPE if ended.code else 0
    except click.UsageError as error:
        error.show()
        return Exit.USAGE
    except click.ClickException as error:
        error.show()
        return Exit.NOT_SO
    except click.Abort:
        return Exit.INTERRUPTED
    except ClientError as error:
        say(f"error: {error}", err=True)
        return next(code for kind, code in CODES.items() if isinstance(error, kind))
    except Exception:
        traceback.print_exc()
        click.echo("error: this is a defect of kubectl deepcoder: please report it with the lines above", err=True)
        return Exit.DEFECT
