"""How test_troubleshooting.py brings messages about: commands, setup.py without a build, imports."""

import importlib
import io
import os
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

import pytest
import setuptools
import torch
from torch.utils import cpp_extension

import cosegflow
from cosegflow import _library

ROOT = Path(__file__).resolve().parents[1]
JOINT = find_spec("lightning") is not None


class Provoke:
    """What the cases use: pytest's fixtures, and the text of what fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.patch, self.tmp, self.capfd = monkeypatch, tmp_path, capfd

    def error(self, function: Callable, *args, **options) -> str:
        """The text of the error that the call ends with."""
        with pytest.raises((Exception, SystemExit)) as failure:
            function(*args, **options)
        return str(failure.value)

    def command(self, *argv: object) -> str:
        """What `cosegflow argv` says on stderr; it ends with 2."""
        if not JOINT:
            pytest.skip("the joint extra is not installed")
        from cosegflow import cli

        said = io.StringIO()
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            try:
                code = cli.main([str(a) for a in argv])
            except SystemExit as ended:
                code = ended.code
        assert code == 2, said.getvalue()
        return said.getvalue()

    def fit(self, *options: object) -> str:
        """What `cosegflow fit` with these options says."""
        return self.command("fit", "--model.backbone", "tiny", "--out", self.tmp / "run", *options)

    def photograph(self) -> Path:
        """A picture of 32 x 32 pixels."""
        image = pytest.importorskip("PIL.Image", reason="the joint extra is not installed")
        path = self.tmp / "photograph.png"
        image.effect_noise((32, 32), 50.0).convert("RGB").save(path)
        return path

    def setup(self) -> tuple[dict, dict]:
        """The names in setup.py, and what it gives to setuptools; nothing is built."""
        given: dict = {}
        self.patch.setattr(setuptools, "setup", lambda **options: given.update(options))
        self.patch.setenv("PATH", os.environ["PATH"])
        self.patch.setattr(sys, "path", sys.path.copy())
        self.patch.chdir(ROOT)
        return runpy.run_path("setup.py"), given

    def build(self) -> None:
        """Builds the extensions, as far as it gets."""
        _, given = self.setup()
        command = setuptools.Distribution({**given, "name": "cosegflow"}).get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(self.tmp / "lib"), str(self.tmp / "objects")
        command.ensure_finalized()
        self.patch.setattr(cpp_extension.BuildExtension, "build_extensions", lambda self: sys.exit("nothing is built"))
        self.patch.setattr(type(command), "drop_stale_objects", lambda self: None)
        command.run()

    def toolkit(self, version: str, architectures: str) -> Path:
        """A CUDA toolkit that only says what it is."""
        home = self.tmp / "cuda"
        (home / "bin").mkdir(parents=True)
        (home / "include").mkdir()
        (home / "include" / "cuda_runtime.h").touch()
        listed = "\\n".join(f"compute_{a}" for a in architectures.split())
        (home / "bin" / "nvcc").write_text(
            f"#!/bin/sh\ncase $1 in --version) echo release {version}, V{version}.0;; *) printf '{listed}\\n';; esac\n"
        )
        (home / "bin" / "nvcc").chmod(0o755)
        self.patch.setenv("CUDA_HOME", str(home))
        self.patch.setattr(torch.cuda, "is_available", lambda: False)
        for name in ("COSEGFLOW_CPU_ONLY", "TORCH_CUDA_ARCH_LIST"):
            self.patch.delenv(name, raising=False)
        return home

    def load(self, folder: Path) -> str:
        """What the first call says where cosegflow lies in a folder with other compiled files, or none."""
        self.patch.setattr(cosegflow, "__path__", [str(folder)])
        self.patch.delitem(sys.modules, "cosegflow._C", raising=False)
        # Nothing else: an editable install's finder would load the real file, and torch ends at a second registration.
        self.patch.setattr(sys, "meta_path", [PathFinder])
        importlib.invalidate_caches()
        names = runpy.run_path(_library.__file__)
        return self.error(names["require"], torch.device("cpu"))
