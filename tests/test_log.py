"""COSEGFLOW_LOG=1 in C++: a line says once which kernels a call takes; see test_trust.py for Python's lines."""

import os
import subprocess
import sys
from pathlib import Path

import backends

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
#include <cstdio>
#include <thread>
#include <vector>
#include "common/log.h"
int main() {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([] {
      for (int i = 0; i < 400; ++i) {
        char reason[16];  // not the same memory twice: a line is known by what it says
        std::snprintf(reason, sizeof(reason), "reason %d", i % 3);
        cosegflow::log_path("match", "portable kernels", reason);
        cosegflow::log_path("match", "fast kernels", nullptr);
        cosegflow::log_path("warp", "fast kernels", nullptr);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  std::printf("%d", cosegflow::log_wanted());
}
"""


def run(command, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in ("COSEGFLOW_LOG", "COSEGFLOW_SIMPLE")}
    done = subprocess.run(
        [str(c) for c in command], env={**environment, **variables}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_line_is_said_once_by_any_thread(tmp_path):
    (tmp_path / "main.cpp").write_text(PROGRAM)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsanitize=thread", "-pthread", f"-I{ROOT / 'csrc'}"]
    run(["g++", *flags, tmp_path / "main.cpp", "-o", tmp_path / "main"])
    done = run([tmp_path / "main"], COSEGFLOW_LOG="1")
    lines = {f"cosegflow: match: portable kernels: reason {i}" for i in range(3)}
    lines |= {f"cosegflow: {op}: fast kernels" for op in ("match", "warp")}
    said = done.stderr.splitlines()
    assert set(said) == lines and len(said) == len(lines) and done.stdout == "1"
    for off in ({}, {"COSEGFLOW_LOG": ""}, {"COSEGFLOW_LOG": "0"}):
        done = run([tmp_path / "main"], **off)
        assert done.stderr == "" and done.stdout == "0", off


def test_the_kernels_say_what_they_are():
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(ROOT / "csrc" / "hostsim")!r})
        import build, numpy
        sim = build.import_module({backends.hostsim_module().__file__!r})
        x, volume = numpy.ones((1, 4, 3, 5), "f"), numpy.ones((1, 2, 3, 2, 3), "f")
        beta, flow = numpy.ones(1, "f"), numpy.zeros((1, 2, 3, 5), "f")
        for simple in (False, True, False):
            sim.correlation(x, x, False, False, simple)
            sim.soft_argmax(volume, None, beta, simple)
        sim.local_correlation(x, x, None, 1, False, False)
        sim.local_correlation(x, x, flow, 1, False, False)
        half = x.astype(numpy.float16)
        sim.match(half, half, None, None, beta, portable=True)
    """
    said = run([sys.executable, "-c", code], COSEGFLOW_LOG="1").stderr.splitlines()
    asked = "simple kernels: the simple kernels were asked for"
    expected = [
        'correlation: portable kernels (FMA): float32 at precision "highest" takes multiply-adds, as accurate as '
        "float32",
        "soft_argmax: streaming kernels",
        f"correlation: {asked}",
        f"soft_argmax: {asked}",
        "local_correlation: tiles with their halo",
        "local_correlation: windows along a flow",
    ]
    assert said[:6] == [f"cosegflow: {line}" for line in expected]
    assert len(said) == 7 and said[6].startswith("cosegflow: match: portable kernels (mma.sync): ")
    assert run([sys.executable, "-c", code]).stderr == ""
