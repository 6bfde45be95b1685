"""hatchling's build hook: compiles the two native parts and puts them into the wheel.

Owns: what is added to a wheel, and the wheel's tag. Refuses to know: how anything is compiled (ebpf.py, native.py).
KINWATCH_BUILD_MACHINE in the environment: portable parts for that machine instead of this one's (wheel.py sets it).

The recipes are loaded by path: build/ must never become a package, `python -m build` would find it instead of its own.
"""

from __future__ import annotations

import os
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KinwatchBuildHook(BuildHookInterface[Any]):
    """Runs for wheels and editable installs alike; a second run with unchanged sources compiles nothing."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, then declare all results (which git ignores) as artifacts of a wheel for this platform.

        The tag is the stable interface of Python 3.11 (see native.py) on this platform; auditwheel refines it.
        Raises RecipeFailed.
        """
        del version
        recipes, machine = Path(self.root) / "build", os.environ.get("KINWATCH_BUILD_MACHINE", "")
        compile_native = runpy.run_path(str(recipes / "native.py"))["build"]
        compile_ebpf = runpy.run_path(str(recipes / "ebpf.py"))["build"]
        if machine:
            portable = runpy.run_path(str(recipes / "portable.py"))
            place: Path = portable["place"](machine)
            module: Path = compile_native(place / "_native.abi3.so", target=portable["target"](machine))
            inside = {module: "monitor/engine"} | dict.fromkeys(compile_ebpf(machine, place), "monitor/capture")
            build_data["force_include"] |= {str(path): f"{folder}/{path.name}" for path, folder in inside.items()}
            platform = f"linux_{machine}"
        else:
            made = [compile_native(), *compile_ebpf()]
            build_data["artifacts"] += [f"/{path.relative_to(self.root)}" for path in made]
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{platform}"
