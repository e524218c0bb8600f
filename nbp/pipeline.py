"""`nbp.VideoPipeline`: classes, prompts or frames in, video out; the models of one folder and what it says of them.

Thin over `nbp.workflows`: with the same seed a clip is bit for bit that of `python -m nbp.generate`.
Legend: B batch, T H W pixels, t h w latent grid.
"""

import copy
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import Unpack

from nbp.download import load_magvit2, load_transformer
from nbp.generator.conditions import condition_encoder
from nbp.generator.model import Generator
from nbp.hub import about as facts
from nbp.hub.about import About
from nbp.hub.locating import locate
from nbp.system.distributed import default_device
from nbp.system.files import write_json
from nbp.tokenizer.model import Tokenizer
from nbp.tokenizer.streaming import ChunkDecoder
from nbp.workflows.asking import list_requests, wanted
from nbp.workflows.drafting import AskedSampling, VideoDraft, as_batch, continued, random_streams
from nbp.workflows.generating import DEFAULT_FPS, advised
from nbp.workflows.making import Encoder, Request, conditions


class VideoPipeline:
    """A tokenizer and a generator that were trained together.

    Args:
        tokenizer, generator: models in eval mode on one device.
        about: class names, frame rate, recommended sampling and so on.
        text_tokenizer: folder, for text-conditioned generators.

    Raises:
        ValueError: the generator predicts codes of another tokenizer, or with it clips of another size.
    """

    def __init__(self, tokenizer: Tokenizer, generator: Generator, about: About | None = None,
                 text_tokenizer: str | Path | None = None) -> None:
        if tokenizer.num_codes != generator.config.num_codes:
            raise ValueError(f"the generator predicts {generator.config.num_codes} codes, the tokenizer has "
                             f"{tokenizer.num_codes}")
        self.tokenizer, self.generator = tokenizer, generator
        self.about, self.text_tokenizer = about or About(), text_tokenizer
        self._encode: Encoder | None = None
        self._tokenizer_scores: list[facts.ScoreNote] = []
        self._packed: tuple[object, Generator] | None = None
        self.about.check_size(*self.size)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device | None = None,
                        tokenizer: str | Path | None = None) -> "VideoPipeline":
        """Load the folder, or the model hub id, of a tokenizer and a generator.

        Args:
            path: folder with `tokenizer/` and `generator/`, or an id such as "name/model"; with `tokenizer`, of the
                generator alone.
            device: where the models run; None: a GPU where there is one.
            tokenizer: folder, official file or hub id of the tokenizer, where `path` does not hold it.

        Raises:
            ValueError: no such models there.
        """
        device = device or default_device()
        homes = {"tokenizer": locate(tokenizer or path, "tokenizer"), "generator": locate(path, "generator")}
        of_tokenizer = facts.read_about(homes["tokenizer"])
        about = facts.read_about(homes["generator"]).or_else(of_tokenizer)
        codec = load_magvit2(homes["tokenizer"], about.resolution, device)
        texts = homes["generator"] / about.text_tokenizer if about.text_tokenizer else None
        pipe = cls(codec, load_transformer(homes["generator"], codec, device), about, texts)
        codec.resolution = about.resolution or pipe.size
        pipe._tokenizer_scores = of_tokenizer.scores
        return pipe

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.generator.parameters()).device

    @property
    def fps(self) -> float:
        """Frames a second of the clips; 8 where the folder does not say."""
        return self.about.fps or DEFAULT_FPS

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return 1 + self.tokenizer.config.downsample[0] * (self.generator.config.grid[0] - 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a clip."""
        (_, height, width), (_, y, x) = self.generator.config.grid, self.tokenizer.config.downsample
        return height * y, width * x

    def __call__(self, classes: Sequence[str | int] | None = None, prompts: Sequence[str] | None = None,
                 num_clips: int | None = None, seed: int = 0, batch_size: int = 8,
                 **sampling: Unpack[AskedSampling]) -> Tensor:
        """Generate clips.

        Args:
            classes: names or ids to cycle through, for class-conditional models; None: all.
            prompts: texts to cycle through, for text-conditioned models; None: the names of the classes.
            num_clips: how many; None: one for each class or prompt that is given, else one.
            seed: clip i depends on the seed and on i only.
            batch_size: clips that are drawn at once.
            sampling: greedy, temperature, top_k (0: off), top_p (1: off), cfg_scale (1: off) and
                lookahead, see `Generator.generate`; where they are not given, as the model's folder recommends.

        Returns:
            float32 (num_clips, 3, T, H, W) in [0, 1], on the CPU.

        Raises:
            ValueError: classes or prompts that the model does not take, or values out of range.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._check_beginning()
        requests, clips = self._requests(classes, prompts, num_clips), []
        sampler = self._sampler()
        for start in range(0, len(requests), batch_size):
            draft = self._draft(requests[start:start + batch_size], seed, sampler, **sampling)
            while draft.step():
                pass
            clips.append(draft.video())
        return torch.cat(clips)

    def pieces(self, classes: Sequence[str | int] | None = None, prompts: Sequence[str] | None = None,
               num_clips: int | None = None, seed: int = 0, video: Tensor | None = None, num_frames: int | None = None,
               **sampling: Unpack[AskedSampling]) -> Iterator[tuple[VideoDraft, Tensor | None]]:
        """Generate one batch step by step, or continue `video`; see the other calls for the arguments.

        Args:
            num_frames: length in all, which may be any; None: a clip's.

        Yields:
            Before the first step and after each the draft of the window, which knows its tokens, and the frames that
            this step has finished, float32 (B, 3, T', H, W); None where there are none.
        """
        if video is None:
            self._check_beginning()
            requests = self._requests(classes, prompts, num_clips)
            numbers, condition = [request.number for request in requests], conditions(requests, self.encoder)
        else:
            video = as_batch(video)
            self.tokenizer.check_range(video)
            if num_clips not in (None, len(video)):
                raise ValueError(f"num_clips is for clips from nothing, got {num_clips} and {len(video)} to continue")
            untold = (given is None or hasattr(given, "__len__") and not len(given) for given in (classes, prompts))
            requests = self._requests(classes, prompts, len(video)) if not all(untold) else []
            numbers, condition = list(range(len(video))), conditions(requests, self.encoder) if requests else None
        options = advised(self.about, condition is not None, **sampling)
        return continued(self._sampler(), self.tokenizer, condition,
                         random_streams(seed, numbers, self.device), video,
                         self.num_frames if num_frames is None else num_frames, **options)

    def drafts(self, classes: Sequence[str | int] | None = None, prompts: Sequence[str] | None = None,
               num_clips: int | None = None, seed: int = 0, video: Tensor | None = None, num_frames: int | None = None,
               **sampling: Unpack[AskedSampling]) -> Iterator[tuple[VideoDraft, Tensor | None]]:
        """As `pieces`, but with all frames so far: those of a video that is continued in front."""
        frames = None if video is None else as_batch(video).detach().cpu()
        for draft, piece in self.pieces(classes, prompts, num_clips, seed, video, num_frames, **sampling):
            if piece is not None:
                frames = piece if frames is None else torch.cat([frames, piece], dim=2)
            yield draft, frames

    def stream(self, classes: Sequence[str | int] | None = None, prompts: Sequence[str] | None = None,
               num_clips: int | None = None, seed: int = 0, video: Tensor | None = None, num_frames: int | None = None,
               **sampling: Unpack[AskedSampling]) -> Iterator[Tensor]:
        """Generate one batch of any length, or continue one; arguments as for `pieces`.

        Yields:
            Frames as soon as the last block that they need is drawn, float32 (B, 3, T', H, W) in [0, 1] on the CPU,
            T' at least 1, those of a video that is continued first. Joined along T they are the whole clips, bit for
            bit. Memory does not grow with their number.
        """
        pieces = self.pieces(classes, prompts, num_clips, seed, video, num_frames, **sampling)
        next(pieces)
        if video is not None:
            yield as_batch(video).detach().cpu().clone()      # the caller's own stays as it is
        yield from (piece for _, piece in pieces if piece is not None)

    def extend(self, video: Tensor, num_frames: int, classes: Sequence[str | int] | None = None,
               prompts: Sequence[str] | None = None, seed: int = 0, **sampling: Unpack[AskedSampling]) -> Tensor:
        """Continue video; the frames that are given stay as they are.

        Beyond the model's clip length a window slides over the latent frames: the last half is given to the next.

        Args:
            video: float (3, T, H, W) or (B, 3, T, H, W) in [0, 1] of the model's size, T at least 1.
            num_frames: length in all, above T.
            classes, prompts: what the videos show, to cycle through; None: the model is not told.
            seed, sampling: as for a call of the pipeline.

        Returns:
            float32 (3, num_frames, H, W), or with B in front as `video` has it, on the CPU.
        """
        frames = torch.cat(list(self.stream(classes, prompts, None, seed, video, num_frames, **sampling)), dim=2)
        return frames if video.ndim == 5 else frames[0]

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video, float ([B,] 3, T, H, W) in [0, 1], T = 1 + 4k -> tokens, int32 ([B,] t, h, w), on the CPU."""
        indices = self.tokenizer.encode(as_batch(video).to(self.device))[1].cpu()
        return indices if video.ndim == 5 else indices[0]

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """Tokens, integer ([B,] t, h, w) -> video, float32 ([B,] 3, T, H, W) in [0, 1], on the CPU."""
        batch = indices if indices.ndim == 4 else indices[None]
        video = ChunkDecoder(self.tokenizer).shown(self.tokenizer.check_indices(batch))
        return video if indices.ndim == 4 else video[0]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both models, what is known of them and a model card; `from_pretrained` reads the folder."""
        folder = Path(folder)
        write_json(folder / facts.INDEX, {"kind": "pipeline", "format_version": 1, "parts": ["tokenizer", "generator"]})
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.generator.save_pretrained(folder / "generator")
        plain = dataclasses.replace(self.about, text_tokenizer=None)
        of_tokenizer = dataclasses.replace(plain, classes=[], scores=self._tokenizer_scores,
                                           sampling=facts.SamplingAdvice())
        facts.write_about(folder / "tokenizer", of_tokenizer, "tokenizer")
        facts.write_about(folder / "generator", plain, "generator", self.text_tokenizer)
        facts.write_card(folder, facts.read_about(folder / "generator"), "pipeline")

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to a model hub.

        Args:
            repo_id: "name/model", created if missing.
            private: of a repository that is created.
            token: of the hub; None: the one of `hf auth login`.

        Returns:
            Address of the commit.
        """
        from huggingface_hub import HfApi

        hub = HfApi(token=token)
        repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / repo_id.split("/")[-1]
            self.save_pretrained(named)
            return str(hub.upload_folder(repo_id=repo_id, folder_path=named, commit_message="NBP pipeline").commit_url)

    @property
    def encoder(self) -> Encoder | None:
        """Function from labels and texts to condition ids; None for unconditional models."""
        if self._encode is None:
            self._encode = condition_encoder(self.generator.config, self.text_tokenizer)
        return self._encode

    def _sampler(self) -> Generator:
        """The generator as `nbp.generate` uses it: in eval mode, and on a CPU with packed weights: a copy, made again
        where they change, since a packed model can be neither stored nor trained."""
        if self.device.type != "cpu" and not self.generator.training:
            return self.generator
        tensors = [tensor.detach() for tensor in (*self.generator.parameters(), *self.generator.buffers())]
        # By content as well: fused optimizers and `.data` change weights without a word.
        state = [(tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version, float(tensor.sum()))
                 for tensor in tensors]
        known = self._packed        # threads of a server meet here: only what is ready is shown to others
        if known is None or known[0] != state:
            packed = copy.deepcopy(self.generator).eval()
            packed.pack()
            known = self._packed = state, packed
        return known[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_packed": None, "_encode": None}      # which can be neither copied nor pickled

    def _check_beginning(self) -> None:
        if not self.generator.config.begin_token:
            raise ValueError("this model has no begin token, it continues videos: pipe.extend(video)")

    def _requests(self, classes: Sequence[str | int] | None, prompts: Sequence[str] | None,
                  num_clips: int | None) -> list[Request]:
        labels, texts = wanted(self.generator.config, self.about, classes, prompts)
        if num_clips is None:
            num_clips = max(1, *(0 if given is None else len(given) for given in (classes, prompts)))
        return list_requests(self.generator.config, num_clips, labels, texts)

    def _draft(self, requests: list[Request], seed: int, sampler: Generator,
               **sampling: Unpack[AskedSampling]) -> VideoDraft:
        streams = random_streams(seed, [request.number for request in requests], self.device)
        condition = conditions(requests, self.encoder)
        return VideoDraft(sampler, self.tokenizer, condition, streams,
                          **advised(self.about, condition is not None, **sampling))
