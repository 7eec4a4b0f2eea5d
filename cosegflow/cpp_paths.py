"""Where C++ projects find the kernels: ``cosegflow --cmake-dir``, ``--include-dir``, ``--library-dir``."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def cmake_dir() -> Path:
    """The folder of ``cosegflow-config.cmake``: what CMake's ``cosegflow_DIR`` is set to."""
    return PACKAGE / "cmake"


def include_dir() -> Path:
    """The folder that holds ``cosegflow/match.h`` and the other headers."""
    installed = PACKAGE / "include"
    return installed if installed.is_dir() else PACKAGE.parent / "csrc" / "include"  # an editable install has no copy


def library_dir() -> Path:
    """The folder that holds ``libcosegflow.so``."""
    return PACKAGE


FOLDERS = {
    "--cmake-dir": (cmake_dir, "print the folder for CMake's find_package(cosegflow)"),
    "--include-dir": (include_dir, "print the folder of the C++ headers"),
    "--library-dir": (library_dir, "print the folder of libcosegflow.so"),
}
"""The option of each folder, with its help."""
