"""Time next-block against next-token prediction: the same clip, the same transformer, two block sizes.

python -m nbp.benchmark --generator RUN/model --tokenizer RUN/model --out benchmark.json
Prints steps and seconds of one clip and their ratio, from one run on one machine. Block size 1 has
other special ids, so its weights are random: the time does not depend on them.
"""

import argparse
import dataclasses
import platform
import time

import torch

from nbp.download import load_magvit2, load_transformer
from nbp.generator.model import Generator
from nbp.system.command import run_command
from nbp.system.files import write_json


def main(arguments=None):
    options = parse(arguments)
    tokenizer = load_magvit2(options.tokenizer, device=options.device)
    blocks = load_transformer(options.generator, tokenizer, device=options.device)
    tokens = Generator(dataclasses.replace(blocks.config, block_shape=[1, 1, 1])).to(options.device).eval()
    results = compare({"next_block": blocks, "next_token": tokens}, options.repeats)
    indices = generate(blocks)
    decode = [timed(lambda: tokenizer.decode_from_code_indices(indices)) for _ in range(options.repeats)]
    results["decode_s"] = min(decode)
    results["speedup"] = results["next_token"]["seconds"] / results["next_block"]["seconds"]
    results["device"] = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu"
    results["torch"], results["num_threads"] = torch.__version__, torch.get_num_threads()
    for name in ("next_token", "next_block"):
        row = results[name]
        print(f"{name}: block {row['block_shape']}, {row['num_steps']} steps, {row['seconds']:.3f} s a clip")
    print(f"next-block prediction is {results['speedup']:.2f} times as fast; decoding the clip to pixels takes "
          f"{results['decode_s']:.3f} s more")
    if options.out:
        write_json(options.out, results)


def compare(generators, repeats):
    """Steps and the best seconds of one clip for each of several generators, measured in turns."""
    results = {name: {"block_shape": list(g.config.block_shape), "num_steps": count_steps(g), "seconds": float("inf")}
               for name, g in generators.items()}
    for _ in range(repeats):
        for name, generator in generators.items():
            results[name]["seconds"] = min(results[name]["seconds"], timed(lambda: generate(generator)))
    return results


def generate(generator):
    """One clip with the default sampling, from one latent frame of zeros where the model cannot start from nothing."""
    config, device = generator.config, next(generator.parameters()).device
    condition = prefix = None
    if config.condition != "none":
        condition = torch.zeros(1, config.condition_len, dtype=torch.long, device=device)
    if not config.begin_token:
        prefix = torch.zeros(1, 1, *config.grid[1:], dtype=torch.long, device=device)
    with torch.inference_mode():
        return generator.generate(condition, prefix, generator=torch.Generator(device).manual_seed(0))


def count_steps(generator):
    """Forward passes of the transformer for one clip."""
    calls = []
    hook = generator.transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        generate(generator)
    finally:
        hook.remove()
    return len(calls)


def timed(function):
    """Seconds of one call, the device's queue drained."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m nbp.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--generator", required=True, help="native model folder or official checkpoint")
    parser.add_argument("--tokenizer", required=True, help="native model folder or official file")
    parser.add_argument("--out", help="JSON file for the figures")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
