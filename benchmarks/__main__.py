"""`python -m benchmarks` from a checkout is `cosegflow bench` with the benchmarks of that checkout."""

import argparse
import sys

from . import command, options

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    options.add_options(parser)
    try:
        sys.exit(command.main(parser.parse_args()))
    except command.BenchError as error:
        sys.exit(f"python -m benchmarks: error: {error}")
