"""Virtual environments beside the project's own, for programs that it is only compared with.

What would drag dependencies along that nobody else needs, or has a licence that not everybody can accept, is no dependency
of ebsfuzz: it is installed when somebody asks for the comparison, into the cache that git ignores.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from campaign.corpus import CHECKOUT

CACHE = CHECKOUT / ".cache" / "environments"


class CannotInstall(Exception):  # noqa: N818 - named for what it says
    """The environment cannot be made. The message is one line that says why."""


def side_environment(name: str, *requirements: str, cache: Path = CACHE) -> Path:
    """The Python of an environment with `requirements` ("hypofuzz==25.11.1"), and with everything of the project's own.

    It is made at the first call, and again when `requirements` have changed. Raises CannotInstall.
    """
    folder = cache / name
    python = folder / "bin" / "python"
    stamp = folder / "made-from"
    wanted = "\n".join((sys.version, sysconfig.get_path("purelib"), str(CHECKOUT), *requirements))
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    try:
        venv.create(folder, clear=True, with_pip=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "--disable-pip-version-check", "-q", *requirements],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise CannotInstall(f"{name}: cannot be installed: {said[-1]}")
        # Behind its own packages, so that theirs come first.
        site = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        Path(site, "beside.pth").write_text(f"{CHECKOUT}\n{sysconfig.get_path('purelib')}\n")
        stamp.write_text(wanted)
    except OSError as error:
        raise CannotInstall(f"{name}: {error.filename or folder}: {error.strerror or error}") from None
    return python
