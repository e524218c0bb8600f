"""python -m nbp.convert official-to-native|native-to-official|checkpoint-to-native|deepspeed-to-fp32|native-to-half
SOURCE TARGET

All but the last are exact, all are strict; each prints how many tensors and parameters it wrote, buffers included.
"""

import argparse
from collections.abc import Sequence

from nbp.system.command import run_command
from nbp.workflows import converting


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    arguments = {"kind": options.kind} if options.command == "official-to-native" else {}
    tensors, parameters = options.convert(options.source, options.target, **arguments)
    print(f"{options.target}: {tensors} tensors, {parameters:,} parameters")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbp.convert", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, convert, source, target in (
            ("official-to-native", converting.official_to_native, "official file", "folder"),
            ("native-to-official", converting.native_to_official, "folder", "file"),
            ("checkpoint-to-native", converting.checkpoint_to_native, "checkpoint file or folder", "folder"),
            ("deepspeed-to-fp32", converting.deepspeed_to_fp32, "checkpoint folder", "file"),
            ("native-to-half", converting.native_to_half, "folder", "folder")):
        command = commands.add_parser(name)
        command.set_defaults(convert=convert)
        command.add_argument("source", help=source)
        command.add_argument("target", help=target)
        if name == "official-to-native":
            command.add_argument("--kind", choices=("tokenizer", "generator"), help="which of two models in one file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
