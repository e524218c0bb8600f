"""What a model folder says about its model besides the architecture: about.json, the text tokenizer, and a model card.

With it a folder needs nothing from its user: names of the classes, frame rate, size and good sampling are inside.
Folders without it load as before. README.md is written for model hubs and for people, and never replaced.
"""

import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from nbp.config import build_config
from nbp.config.checking import Section
from nbp.system.files import atomic_path, read_json, write_json, write_text

ABOUT, CARD, TEXT_TOKENIZER = "about.json", "README.md", "text_tokenizer"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
INDEX = "model_index.json"     # marks a folder that holds a tokenizer and a generator


@dataclass
class SamplingAdvice(Section):
    """How a generator is best sampled; arguments of `Generator.generate`."""

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 16000
    top_p: float = 0.9
    cfg_scale: float | None = None
    lookahead: int | None = None


@dataclass
class ScoreNote(Section):
    """A measured score; a distance means something under its protocol only."""

    metric: str = ""
    value: float = 0.0
    protocol: str = ""


@dataclass
class About(Section):
    """What a model was made of and how it is used."""

    data: str | None = None                                          # name of the data set
    classes: list[str] = field(default_factory=list)                 # names in id order
    fps: float | None = None
    resolution: int | list[int] | None = None                        # pixels: side of a square, or [height, width]
    num_frames: int | None = None                                    # of a clip
    sampling: SamplingAdvice = field(default_factory=SamplingAdvice)
    text_tokenizer: str | None = None                                # folder inside the model folder
    scores: list[ScoreNote] = field(default_factory=list)

    def or_else(self, other: "About") -> "About":
        """These facts, and those of `other`, another part of a pipeline, where these say nothing; sampling, scores and
        the text tokenizer are each part's own."""
        nothing = About()
        return dataclasses.replace(self, **{
            name: getattr(other, name) for name in ("data", "classes", "fps", "resolution", "num_frames")
            if getattr(self, name) == getattr(nothing, name)})


    def check_size(self, height: int, width: int) -> None:
        """ValueError: clips of that many pixels are not of the model's size."""
        sides = self.resolution if isinstance(self.resolution, list) else 2 * [self.resolution]
        if self.resolution is not None and sides != [height, width]:
            raise ValueError(f"with this tokenizer the generator's clips have {height}x{width} pixels, but it was "
                             f"trained on {sides[0]}x{sides[1]}: give the tokenizer that it was trained with")


def read_about(folder: str | Path) -> About:
    """What a model folder says of itself; nothing for folders without about.json and for official files. ValueError: it
    is damaged or has unknown fields."""
    path = Path(folder) / ABOUT
    return build_config(About, read_json(path), path) if path.is_file() else About()


def write_about(folder: str | Path, about: About, kind: str, text_tokenizer: str | Path | None = None) -> None:
    """Write about.json, a copy of the text tokenizer's folder, and the card where there is none; `kind` is "tokenizer",
    "generator" or "pipeline"."""
    target = Path(folder) / TEXT_TOKENIZER
    if text_tokenizer is not None and Path(text_tokenizer).is_dir():
        if Path(text_tokenizer).resolve() != target.resolve():
            _copy_text_tokenizer(Path(text_tokenizer), target)
        about = dataclasses.replace(about, text_tokenizer=TEXT_TOKENIZER)
    write_json(Path(folder) / ABOUT, dataclasses.asdict(about))
    write_card(folder, about, kind)


def _copy_text_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's own files: a language model's folder holds gigabytes of weights as well."""
    for path in sorted(path for path in source.iterdir() if path.is_file() and path.suffix not in WEIGHT_SUFFIXES):
        with atomic_path(target / path.name) as temporary:
            shutil.copyfile(path, temporary)


def write_card(folder: str | Path, about: About, kind: str) -> None:
    """Write README.md, a model card, where there is none."""
    path = Path(folder) / CARD
    if not path.exists():
        write_text(path, card(about, kind, path.parent.resolve().name))


USE = {
    "pipeline": """import nbp

pipe = nbp.VideoPipeline.from_pretrained("{name}")
clips = pipe(num_clips=4, seed=0)                     # (4, 3, T, H, W) in [0, 1]
nbp.write_video("clip.mp4", clips[0], fps={fps:g})""",
    "tokenizer": """import nbp

tokenizer = nbp.load_magvit2("{name}", device="cpu")
_, tokens = tokenizer.encode(video)                   # video (B, 3, T, H, W) in [0, 1]
video = tokenizer.decode_from_code_indices(tokens).clamp(0, 1)""",
    "generator": """import nbp

generator = nbp.load_transformer("{name}", device="cpu")
tokens = generator.generate(condition)                # (B, t, h, w), for the tokenizer that it was trained with""",
}


def card(about: About, kind: str, name: str) -> str:
    """Model card in Markdown: metadata that model hubs read, how to use the model, its facts and scores."""
    from huggingface_hub import ModelCardData

    tags = ["video", "next-block-prediction", "video-tokenizer" if kind == "tokenizer" else "video-generation"]
    text = kind != "tokenizer" and about.text_tokenizer is not None
    data = ModelCardData(library_name="nbp", tags=tags, pipeline_tag="text-to-video" if text else None,
                         metrics=sorted({note.metric for note in about.scores}) or None)
    sides = about.resolution if isinstance(about.resolution, list) else 2 * [about.resolution or "?"]
    size = f"{about.num_frames or '?'} frames of {'x'.join(map(str, sides))}"
    facts = [("data", about.data), ("clips", size if about.resolution else None),
             ("frames a second", None if about.fps is None else f"{about.fps:g}"),
             ("classes", ", ".join(about.classes) or None)]
    if kind != "tokenizer":
        sampling = dataclasses.asdict(about.sampling).items()
        facts.append(("sampling", ", ".join(f"{key} {value}" for key, value in sampling if value is not None)))
    lines = ["---", data.to_yaml().strip(), "---", "", f"# {name}", "",
             f"A {kind} of [Next-Block Prediction for video](https://arxiv.org/abs/2502.07737).", "", "```python",
             USE[kind].format(name=name, fps=about.fps or 8), "```", "", "| | |", "|---|---|",
             *(f"| {key} | {value} |" for key, value in facts if value is not None), ""]
    if about.scores:
        lines += ["| score | value | protocol |", "|---|---|---|",
                  *(f"| {note.metric} | {note.value:.4g} | {note.protocol} |" for note in about.scores), ""]
    return "\n".join(lines)
