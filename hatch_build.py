"""Build hook: compiles the kernels, if this machine has a C++ compiler, and puts them into the wheel.

Without them a wheel holds Python alone and runs anywhere. `UNSPOOL_REQUIRE_KERNELS=1` makes a failure an error.
"""

from __future__ import annotations

import os
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface[Any]):
    """Builds the kernels in the source folder; an editable installation finds them there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the kernels, and add them to a wheel, which then is for this platform and any Python 3."""
        build = runpy.run_path(str(Path(self.root, "src", "unspool", "kernels", "build.py")))
        self.app.display_info(build["build_if_possible"]())
        if not build["is_current"]():
            if os.environ.get("UNSPOOL_REQUIRE_KERNELS") == "1":
                raise RuntimeError("the kernels were not built, and UNSPOOL_REQUIRE_KERNELS=1 requires them")
            return
        if version != "editable":
            files = (build["LIBRARY"], build["FACTS"])
            build_data["artifacts"] += [f"/{path.relative_to(Path(self.root).resolve())}" for path in files]
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
