"""Puts a whole Chromium and Firefox into .cache/browsers, where the machine has none.

    .venv/bin/python tools/browsers.py

Debian's packages are fetched with apt-get and unpacked beside each other: that needs no root, and
the machine stays as it is. Prints where each browser is; ends with 1 where one cannot be had.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".cache" / "browsers"

# What each is called on a PATH, its package, and its program therein. Debian's own start scripts
# look for what is installed on the machine.
BROWSERS = {
    "chromium": (
        ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
        "chromium",
        "usr/lib/chromium/chromium",
    ),
    "firefox": (
        ("firefox", "firefox-esr"),
        "firefox-esr",
        "usr/lib/firefox-esr/firefox-esr",
    ),
}


def find(browser: str) -> Path | None:
    """Where `browser` ("chromium", "firefox") is: unpacked here, or installed on the machine."""
    unpacked = HOME / "debian" / browser
    if unpacked.exists():
        return unpacked
    names, _, _ = BROWSERS[browser]
    found = (shutil.which(name) for name in names)
    return next((Path(path) for path in found if path is not None), None)


def fetch(into: Path) -> None:
    """Fetches the browsers and what they need that the machine lacks, and unpacks them."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (into / folder).mkdir(parents=True)
    apt = ["apt-get", "-qq", "--yes", "--no-install-recommends", "-o", "Debug::NoLocking=1"]
    apt += ["-o", f"Dir::State::lists={into}/lists", "-o", f"Dir::Cache={into}/cache"]
    # As root, apt-get would fetch as a user of its own, who may not write here.
    apt += ["-o", "APT::Sandbox::User=root"]
    packages = [package for _, package, _ in BROWSERS.values()]
    subprocess.run([*apt, "update"], check=True, stdout=sys.stderr)
    # Asks for no more than the machine lacks; nothing of it is installed.
    subprocess.run(
        [*apt, "--download-only", "--reinstall", "install", *packages],
        check=True,
        stdout=sys.stderr,
    )
    for package in sorted((into / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, into], check=True)
    for folder in ("lists", "cache"):
        shutil.rmtree(into / folder)
    # Not each other's: a browser finds what is beside its program by itself.
    shared = [*into.glob("usr/lib/*-linux-*/**/*.so*"), *into.glob("lib/*-linux-*/*.so*")]
    libraries = {f"$here/{path.parent.relative_to(into)}" for path in shared}
    for browser, (_, _, program) in BROWSERS.items():
        script = into / browser
        script.write_text(
            "#!/bin/sh\n"
            'here=$(dirname "$0")\n'
            f'export LD_LIBRARY_PATH="{":".join(sorted(libraries))}"\n'
            # The process id stays: who kills it kills the browser.
            f'exec "$here/{program}" "$@"\n'
        )
        script.chmod(0o755)


def install() -> None:
    """Makes HOME/debian, in one step: nobody finds half a browser."""
    if shutil.which("apt-get") is None:
        sys.exit(
            "tools/browsers.py: expected Chromium and Firefox on the PATH, or apt-get to fetch "
            "Debian's: install both browsers."
        )
    HOME.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=HOME))
    try:
        fetch(fresh)
        fresh.chmod(0o755)
        fresh.rename(HOME / "debian")
    except (subprocess.CalledProcessError, OSError) as error:
        # Another run was quicker: its browsers are as good.
        if not all(find(browser) for browser in BROWSERS):
            sys.exit(f"tools/browsers.py: Chromium and Firefox could not be fetched: {error}")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def main() -> None:
    """Installs what is missing, and says where the browsers are and that they start."""
    if not all(find(browser) for browser in BROWSERS):
        install()
    for browser in BROWSERS:
        path = find(browser)
        if path is None:
            sys.exit(f"tools/browsers.py: expected {browser} in {HOME}/debian, found none.")
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=False, env=os.environ
        )
        if answer.returncode != 0:
            sys.exit(f"tools/browsers.py: {path} does not start: {answer.stderr.strip()}")
        print(f"{path}: {answer.stdout.strip()}")


if __name__ == "__main__":
    main()
