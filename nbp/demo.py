"""Open a model in the browser: generate block by block, continue, compare with next-token prediction, reconstruct.

python -m nbp.demo ckpt/NBP-procgen
The page is served on this machine only (127.0.0.1). Needs the extra: pip install -e ".[demo]"
"""

import argparse
from collections.abc import Sequence

from nbp.system.command import at_least, run_command
from nbp.web.page import serve


def main(arguments: Sequence[str] | None = None) -> None:
    serve(**vars(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nbp.demo", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("model", nargs="?", default="ckpt/NBP-procgen", help="folder or model hub id of a generator with its tokenizer")
    add("--clips", help="folder of videos to continue and reconstruct; default: examples/ in the model's folder")
    add("--port", type=at_least(1, 65535), help="default: the first free one from 7860 on")
    add("--device", help="default: a GPU, or cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
