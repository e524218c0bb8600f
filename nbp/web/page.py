"""The page: four tabs around the actions, served on this machine only.

Nothing is kept: uploads are deleted as soon as they are read, clips after an hour, and all of it when the page closes.
"""

import atexit
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nbp.data.video import read_video
from nbp.pipeline import VideoPipeline
from nbp.web import actions
from nbp.web.actions import MAX_UPLOAD_MB, Shown, told, told_words
from nbp.workflows.clip_sources import VIDEO_SUFFIXES

if TYPE_CHECKING:
    import gradio as gr

HOST, KEEP_S = "127.0.0.1", 3600
NO_CLASS = "(not told)"


def serve(*, model: str, clips: str | None, port: int | None, device: str | None, wait: bool = True) -> "gr.Blocks":
    """Load a model and open its page; the arguments are those of the command, but for `wait`: False comes back with the
    page open. ValueError: no such models or clips."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    pipe = VideoPipeline.from_pretrained(model, device)
    folder = Path(clips) if clips else Path(model) / "examples"
    if clips and not folder.is_dir():
        raise ValueError(f"--clips {clips} is not a folder")
    examples = {path.name: str(path) for path in sorted(folder.glob("*")) if path.suffix.lower() in VIDEO_SUFFIXES}
    if clips and not examples:
        raise ValueError(f"--clips {clips} holds no videos itself; folders in it are not looked into")
    kept = tempfile.TemporaryDirectory(prefix="nbp-demo-")
    atexit.register(kept.cleanup)
    os.environ["GRADIO_TEMP_DIR"] = f"{kept.name}/page"     # else uploads and pictures outlive the page
    out = Path(kept.name) / "clips"
    out.mkdir()
    page = build(pipe, Path(model).name, examples, out)
    # What gradio imports at the first event, and packed weights, are not waited for after the first click.
    import_module("matplotlib.pyplot")
    if pipe.generator.config.begin_token and pipe.generator.config.condition != "text":
        draft, _ = next(pipe.drafts(num_clips=1))
        draft.step()
        actions.draw_step(draft)
    for name in ("no_proxy", "NO_PROXY"):       # gradio asks its own page whether it is there
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST, "localhost"]))
    page.queue(max_size=8).launch(server_name=HOST, server_port=port, share=False, max_file_size=MAX_UPLOAD_MB << 20,
                                  prevent_thread_lock=True, quiet=True)
    if wait:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))      # and so `kept` is removed
        print(f"the page is at {page.local_url}; Ctrl-C closes it", flush=True)
        page.block_thread()
    return page


def build(pipe: VideoPipeline, name: str, examples: dict[str, str], out: Path) -> "gr.Blocks":
    """The page of a pipeline; `examples` are titles and paths of clips, `out` is a folder for its own."""
    import gradio as gr

    with gr.Blocks(title=f"NBP: {name}", delete_cache=(KEEP_S, KEEP_S)) as page:
        gr.Markdown(f"# {name}\n{pipe.num_frames} frames of {pipe.size[0]}x{pipe.size[1]} at {pipe.fps:g} frames a "
                    "second. Each step draws a whole block of tokens; dark cells are not drawn yet.")
        begins = pipe.generator.config.begin_token      # others only continue videos
        if begins:
            with gr.Tab("Generate"):
                _generate_tab(gr, pipe, out)
        with gr.Tab("Continue"):
            _continue_tab(gr, pipe, out, examples)
        if begins:
            with gr.Tab("Next block against next token"):
                _race_tab(gr, pipe)
        with gr.Tab("Reconstruct"):
            _reconstruct_tab(gr, pipe, out, examples)
    return page


def _generate_tab(gr: Any, pipe: VideoPipeline, out: Path) -> None:  # noqa: ANN401 - gradio, where it is installed
    advice, text = pipe.about.sampling, pipe.generator.config.condition == "text"
    with gr.Row():
        with gr.Column(scale=1):
            label = _classes(gr, pipe)
            prompt = gr.Textbox(label="Prompt", visible=text, elem_id="prompt")
            seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
            with gr.Accordion("Sampling", open=False):
                temperature = gr.Number(advice.temperature, label="Temperature", elem_id="temperature")
                top_k = gr.Number(advice.top_k, label="top_k (0: off)", precision=0)
                top_p = gr.Number(advice.top_p, label="top_p (1: off)")
                scale = gr.Number(advice.cfg_scale or 1, label="cfg_scale (1: off)")
            start = gr.Button("Generate", variant="primary", elem_id="generate")
        shown = _outputs(gr, "generate")
    start.click(_action(gr, actions.generate, pipe, out, no_class=0),
                [label, prompt, seed, temperature, top_k, top_p, scale], shown, show_progress="hidden")


def _continue_tab(gr: Any, pipe: VideoPipeline, out: Path, examples: dict[str, str]) -> None:  # noqa: ANN401
    with gr.Row():
        with gr.Column(scale=1):
            video, state = _source(gr, pipe, examples, "continue")
            stride = pipe.tokenizer.config.downsample[0]
            given = gr.Slider(1, pipe.num_frames, 1 + stride, step=stride, label="Frames that are given")
            length = gr.Slider(2, 4 * pipe.num_frames, pipe.num_frames, step=1, label="Frames in all")
            label = _classes(gr, pipe, NO_CLASS)
            seed = gr.Number(0, label="Seed", precision=0)
            temperature = gr.Number(pipe.about.sampling.temperature, label="Temperature")
            start = gr.Button("Continue", variant="primary", elem_id="continue")
        shown = _outputs(gr, "continue")
    _on_source(pipe, video, state, shown[1], examples)
    start.click(_action(gr, actions.extend, pipe, out, no_class=3),
                [state, given, length, label, seed, temperature], shown, show_progress="hidden")


def _race_tab(gr: Any, pipe: VideoPipeline) -> None:  # noqa: ANN401
    with gr.Row():
        label = _classes(gr, pipe)
        seed = gr.Number(0, label="Seed", precision=0)
        start = gr.Button("Start both", variant="primary", elem_id="race")
    sides = []
    for name in ("block", "token"):
        sides += [gr.Image(label=f"Next {name}", format="png", interactive=False, elem_id=f"race-{name}-picture"),
                  gr.Markdown(elem_id=f"race-{name}-words")]

    def run(label: str | None, seed: int) -> Iterator[tuple[Any, ...]]:
        try:
            for left, right in actions.race(pipe, label, seed):
                yield left.picture, left.words, right.picture, right.words
        except Exception as error:
            yield None, told_words(error), None, ""

    start.click(run, [label, seed], sides, show_progress="hidden")


def _reconstruct_tab(gr: Any, pipe: VideoPipeline, out: Path, examples: dict[str, str]) -> None:  # noqa: ANN401
    with gr.Row():
        with gr.Column(scale=1):
            video, state = _source(gr, pipe, examples, "reconstruct")
            start = gr.Button("Reconstruct", variant="primary", elem_id="reconstruct")
        shown = _outputs(gr, "reconstruct")
    _on_source(pipe, video, state, shown[1], examples)
    start.click(_action(gr, actions.reconstruct, pipe, out), [state], shown, show_progress="hidden")


def _classes(gr: Any, pipe: VideoPipeline, nothing: str | None = None) -> Any:  # noqa: ANN401
    config = pipe.generator.config
    names = list(pipe.about.classes) or [str(number) for number in range(config.num_condition_ids)]
    choices = ([nothing] if nothing else []) + (names if config.condition == "label" else [])
    return gr.Dropdown(choices, value=choices[0] if choices else None, label="Class", visible=len(choices) > 1)


def _source(gr: Any, pipe: VideoPipeline, examples: dict[str, str], name: str) -> tuple[list[Any], Any]:  # noqa: ANN401
    """An upload, and a choice of clips; what they hold goes into a state."""
    upload = gr.File(label=f"Video, at most {MAX_UPLOAD_MB} MB", elem_id=f"{name}-upload")
    chosen = gr.Dropdown(list(examples), value=None, label="or a clip from here", visible=bool(examples),
                         elem_id=f"{name}-clip")
    return [upload, chosen], gr.State(None)


def _on_source(pipe: VideoPipeline, video: list[Any], state: Any, words: Any, examples: dict[str, str]) -> None:  # noqa: ANN401
    def answer(read: Callable[[], Tensor], name: str) -> tuple[Tensor | None, str]:
        try:
            return read(), f"{name} is read"
        except Exception as error:
            return None, told_words(error)

    def uploaded(path: str) -> tuple[Tensor | None, str]:
        return answer(lambda: actions.take_upload(pipe, path), Path(path).name)

    def chosen(name: str | None) -> tuple[Tensor | None, str]:
        if name not in examples:
            return None, ""
        return answer(lambda: read_video(examples[name], pipe.num_frames, pipe.fps, pipe.size, start=0), name)

    video[0].upload(uploaded, [video[0]], [state, words])
    video[1].input(chosen, [video[1]], [state, words])


def _outputs(gr: Any, name: str) -> list[Any]:  # noqa: ANN401
    with gr.Column(scale=3):
        return [gr.Image(label="Tokens so far", format="png", interactive=False, elem_id=f"{name}-picture"),
                gr.Markdown(elem_id=f"{name}-words"),
                gr.Video(label="Clip", height=360, autoplay=True, loop=True, interactive=False,
                         elem_id=f"{name}-video")]


def _action(gr: Any, action: Callable[..., Iterator[Shown]], pipe: VideoPipeline, out: Path,  # noqa: ANN401
            no_class: int | None = None) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Event handler of an action; argument number `no_class` is a class that may be left out."""
    def run(*values: Any) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - of gradio's fields
        arguments = [None if number == no_class and value == NO_CLASS else value for number, value in enumerate(values)]
        for number, (picture, words, path) in enumerate(told(action, pipe, out, *arguments)):
            yield picture, words, path if path or number == 0 else gr.skip()

    return run
