"""The kernels from other projects: headers, find_package, the C++ examples, an extension that calls the operators."""

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from mutation import hostsim_build

import cosegflow
from cosegflow import _library, cli, cpp_paths

ROOT = Path(__file__).resolve().parents[1]
CPP = ROOT / "examples" / "cpp"
HEADERS = sorted((ROOT / "csrc" / "include" / "cosegflow").glob("*.h"))
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
SCRIPTS = sysconfig.get_path("scripts")  # of a virtual environment that may not be activated
PATH = os.pathsep.join([SCRIPTS, os.environ["PATH"]])
CMAKE = shutil.which("cmake", path=PATH)
needs_cmake = pytest.mark.skipif(CMAKE is None, reason="no cmake: pip install cmake")

# The runtime's functions that match_cuda calls, over host memory: hostsim has launches only.
HOST_RUNTIME = """
#pragma once
#include <cstdlib>
#include <cstring>
#include "hostsim/types.h"
enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
constexpr unsigned cudaStreamNonBlocking = 1;
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaMalloc(void** data, size_t bytes) { return *data = std::malloc(bytes), cudaSuccess; }
inline cudaError_t cudaFree(void* data) { return std::free(data), cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return *s = nullptr, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
"""


def include_all(suffix: str, folder: Path) -> Path:
    """A source with every header, each of them twice."""
    file = folder / f"all{suffix}"
    lines = [f"#include <cosegflow/{header.name}>\n" for header in (*HEADERS, *HEADERS)]
    file.write_text("".join(lines) + "int main() { return 0; }\n")
    return file


@pytest.mark.parametrize("header", HEADERS, ids=lambda h: h.name)
def test_header_compiles_alone(header: Path):
    program = f"#include <cosegflow/{header.name}>\nint main() {{ return 0; }}\n"
    command = ["g++", "-std=c++17", *STRICT, "-fsyntax-only", "-x", "c++", "-", f"-I{cpp_paths.include_dir()}"]
    run(*command, input=program)


@pytest.mark.parametrize("compiler", ["g++", "clang++", "nvcc"])
def test_headers_compile_together(tmp_path: Path, compiler: str):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    source = include_all(".cu" if compiler == "nvcc" else ".cpp", tmp_path)
    strict = ["-Werror", "all-warnings", "-arch=sm_80"] if compiler == "nvcc" else STRICT
    run(compiler, "-std=c++20", *strict, f"-I{cpp_paths.include_dir()}", "-c", source, "-o", tmp_path / "all.o")


def test_the_headers_have_the_version_of_the_package():
    text = (ROOT / "csrc" / "include" / "cosegflow" / "version.h").read_text()
    numbers = [re.search(rf"#define COSEGFLOW_VERSION_{part} (\d+)\n", text) for part in ("MAJOR", "MINOR", "PATCH")]
    assert ".".join(n.group(1) for n in numbers if n) == re.match(r"\d+\.\d+\.\d+", cosegflow.__version__).group()


def test_every_header_is_in_the_docs():
    text = (ROOT / "docs" / "cpp.md").read_text()
    for header in HEADERS:
        assert f"`{header.name}`" in text, header.name
        functions = re.findall(r"^COSEGFLOW_API \w+ (\w+)\(", header.read_text(), re.MULTILINE)
        for operation in {re.sub(r"_(forward|backward)(_workspace_bytes)?_(cpu|cuda)$", "", f) for f in functions}:
            assert f"`{operation}" in text, operation


@pytest.mark.parametrize("option", sorted(cpp_paths.FOLDERS))
def test_the_command_prints_a_folder_and_nothing_else(option: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main([option])
    captured = capsys.readouterr()
    assert ended.value.code == 0 and captured.err == ""
    inside = {"--cmake-dir": "cosegflow-config.cmake", "--include-dir": "cosegflow/match.h"}
    path = Path(captured.out.removesuffix("\n"))
    assert path.is_absolute() and (path / inside.get(option, "libcosegflow.so")).is_file()


def test_python_m_cosegflow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["cosegflow", "--version"])
    with pytest.raises(SystemExit):
        runpy.run_module("cosegflow", run_name="__main__")
    assert capsys.readouterr().out == f"cosegflow {cosegflow.__version__}\n"


def expected_table(lines: list[str]) -> None:
    """Compares what match_cpu prints, a pixel a line, with cosegflow.match on the features of pair.h."""

    def noise(c, y, x):
        h = ((c * 256 + y + 128) * 256 + x + 128).astype(np.uint32)
        h = (h ^ h >> 16) * np.uint32(2246822519)
        h = (h ^ h >> 13) * np.uint32(3266489917)
        return ((h ^ h >> 16) >> 8).astype(np.float32) / np.float32(16777216) - np.float32(0.5)

    c, y, x = np.meshgrid(np.arange(32), np.arange(24), np.arange(40), indexing="ij")
    fa, fb = (torch.from_numpy(f)[None] for f in (noise(c, y, x), noise(c, y - 2, x - 3)))
    matches = cosegflow.match(fa, fb, beta=50.0)
    planes = torch.cat([matches.flow, matches.lse[:, None], matches.confidence[:, None]], dim=1)[0].numpy()
    assert len(lines) == 16
    for line in lines:
        px, py, *values = line.split()
        np.testing.assert_allclose(np.array(values, float), planes[:, int(py), int(px)], atol=1e-4)


@needs_cmake
def test_the_cpp_examples(tmp_path: Path):
    """CMake finds the package, match_cpu agrees with Python, and match_cuda says where there is no device."""
    flags = f"-DCMAKE_CXX_FLAGS={' '.join(STRICT)}"
    run(CMAKE, "-S", CPP, "-B", tmp_path, f"-Dcosegflow_DIR={cpp_paths.cmake_dir()}", flags)
    run(CMAKE, "--build", tmp_path)
    lines = run(tmp_path / "match_cpu").splitlines()
    expected_table(lines[1:-1])
    program = tmp_path / "match_cuda"
    if not _library.HAS_CUDA_KERNELS or shutil.which("nvcc") is None:
        return  # CMake left it out
    done = subprocess.run([program], capture_output=True, text=True)
    if torch.cuda.is_available() or done.returncode == 0:  # 0 beside a CPU build of torch, too
        assert done.returncode == 0 and done.stdout.count("from the CPU") == 4, done.stdout + done.stderr
    else:
        assert done.returncode == 77 and "no CUDA device: " in done.stderr, done.stdout + done.stderr


def test_plain_compiler_flags(tmp_path: Path):
    """The command of docs/cpp.md."""
    include, library = cpp_paths.include_dir(), cpp_paths.library_dir()
    program = tmp_path / "match_cpu"
    link = [f"-I{include}", f"-L{library}", "-lcosegflow", f"-Wl,-rpath,{library}", "-pthread"]
    run("g++", "-std=c++17", CPP / "match_cpu.cpp", "-o", program, *link)
    assert "largest error" in run(program)


def test_the_cuda_example_on_simulated_kernels(tmp_path: Path):
    """match_cuda, its pointers and its workspace, without a device."""
    if not _library.HAS_CUDA_KERNELS:
        pytest.skip("the program links libcosegflow for the CPU and hostsim for CUDA: names clash only in a CUDA build")
    folder = hostsim_build.build().parent
    names = [hostsim_build._object_name(source) for source in hostsim_build.sources(ROOT / "csrc")]
    of_python = re.compile(r"obj/hostsim_(bind_|module|primitives_|gradients_)")
    objects = [folder / name for name in names if not of_python.match(name)]
    (tmp_path / "cuda_runtime_api.h").write_text(HOST_RUNTIME)
    include = [f"-I{d}" for d in (tmp_path, ROOT / "csrc", cpp_paths.include_dir())]
    library = cpp_paths.library_dir()
    link = [f"-L{library}", "-lcosegflow", f"-Wl,-rpath,{library}", "-ldl", "-pthread"]
    run("g++", "-std=c++17", *include, CPP / "match_cuda.cpp", *objects, *link, "-o", tmp_path / "match_cuda")
    assert run(tmp_path / "match_cuda").count("from the CPU") == 4


def fake_package(folder: Path, version: str, cuda: str) -> Path:
    """An installed package as find_package sees it; returns the folder of its CMake files."""
    package = folder / "cosegflow"
    shutil.copytree(cpp_paths.cmake_dir(), package / "cmake")
    shutil.copytree(cpp_paths.include_dir(), package / "include")
    (package / "libcosegflow.so").touch()
    (package / "_version.py").write_text(f'"""Docs."""\n\n__version__ = "{version}"\n')
    (package / "_build_info.json").write_text(f'{{"cuda": {cuda}, "cuda_reason": "no nvcc, for one"}}')
    return package / "cmake"


def configure(folder: Path, cmake_dir: Path | None, commands: str) -> subprocess.CompletedProcess[str]:
    """Runs CMake on a project of `commands` that finds the package in `cmake_dir`."""
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.19)\nproject(user LANGUAGES NONE)\n"
        f"set_property(GLOBAL PROPERTY TARGET_SUPPORTS_SHARED_LIBS TRUE)\n{commands}\n"
    )
    command = [str(CMAKE), "-S", str(folder), "-B", str(folder / "build")]
    command += [] if cmake_dir is None else [f"-Dcosegflow_DIR={cmake_dir}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@needs_cmake
@pytest.mark.parametrize(
    ("version", "good", "bad"),
    [
        ("0.3.1", ["0", "0.3", "0.3.1", "0.2...<0.4", "0.3.1...0.3.1"], ["0.3.2", "0.2", "0.4", "1", "0.1...<0.3.1"]),
        ("2.1.0.dev1", ["2", "2.0", "2.1.0", "1...2.1.0"], ["1", "2.2", "3", "1...<2.1"]),
    ],
)
def test_find_package_checks_the_version(tmp_path: Path, version: str, good: list[str], bad: list[str]):
    commands = f"""
        foreach(wanted {" ".join(good + bad)})
          find_package(cosegflow "${{wanted}}" CONFIG QUIET PATHS "{fake_package(tmp_path, version, "null")}")
          message("${{wanted}} ${{cosegflow_FOUND}} ${{cosegflow_VERSION}}")
        endforeach()
    """
    done = configure(tmp_path, None, commands)
    assert done.returncode == 0, done.stderr
    found = {line.split()[0]: line.split()[1:] for line in done.stderr.splitlines() if re.match(r"\d\S* [01]", line)}
    short = ".".join(version.split(".")[:3])
    assert {w for w in found if found[w][0] == "1"} == set(good)
    assert set(found) == set(good + bad) and all(found[w][1] == short for w in good)


@needs_cmake
def test_find_package_says_what_is_missing(tmp_path: Path):
    cases = [
        ("null", "CPU CUDA", r"no CUDA kernels: no nvcc, for one\. Install the CUDA toolkit .*COSEGFLOW_FORCE_CUDA=1"),
        ('"13.0"', "CPU CUDA", None),
        ("null", "CPU", None),
        ('"13.0"', "HIP", "no component HIP: there are CPU and CUDA"),
    ]
    for i, (cuda, components, message) in enumerate(cases):
        folder = tmp_path / str(i)
        folder.mkdir()
        cmake_dir = fake_package(folder, "0.1.0", cuda)
        find = f"find_package(cosegflow CONFIG REQUIRED COMPONENTS {components})\n"
        done = configure(folder, cmake_dir, find + 'message("cuda=${cosegflow_HAS_CUDA}=${cosegflow_CUDA_FOUND}")')
        text = " ".join(done.stderr.split())
        assert (done.returncode == 0) == (message is None), text
        has_cuda = "FALSE" if cuda == "null" else "TRUE"
        assert re.search(message or f"cuda={has_cuda}={has_cuda}", text), text
    (folder / "cosegflow" / "libcosegflow.so").unlink()
    done = configure(folder, cmake_dir, "find_package(cosegflow CONFIG REQUIRED)")
    text = " ".join(done.stderr.split())
    assert done.returncode != 0 and "cosegflow is not built: there is no" in text and "pip install" in text


def test_the_torch_extension_example(tmp_path: Path):
    if importlib.util.find_spec("ninja") is None and shutil.which("ninja") is None:
        pytest.skip("torch's load() needs ninja")
    environment = {**os.environ, "PATH": PATH, "TORCH_EXTENSIONS_DIR": str(tmp_path), "MAX_JOBS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    out = run(sys.executable, ROOT / "examples" / "torch_extension" / "example.py", env=environment, cwd=tmp_path)
    assert "results and gradients as in Python" in out
