"""The page: its actions in Python, and every tab by clicks in a real browser.

The pictures of docs/demo.md are of the slow test, where two folders are named:
    NBP_SCREENSHOTS=shots NBP_DEMO_CLIPS=data/procgen/val/coinrun pytest --slow tests/test_demo.py
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from pipelines import make_pipeline

import nbp
from nbp import demo
from nbp.data.video_io import VideoError
from nbp.web import actions
from nbp.web.page import build

ROOT = Path(__file__).parent.parent
RELEASED = ROOT / "ckpt" / "NBP-procgen"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pipeline with two held-out clips."""
    folder = tmp_path_factory.mktemp("models") / "NBP-tiny"
    pipe = make_pipeline()
    pipe.save_pretrained(folder)
    (folder / "examples").mkdir()
    for number, clip in enumerate(pipe(num_clips=2, seed=1)):
        nbp.write_video(folder / "examples" / f"held-out-{number}.mp4", clip, fps=15)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return nbp.VideoPipeline.from_pretrained(folder, device="cpu")


@pytest.fixture
def upload(tmp_path):
    """Function(name, frames) -> path of a video as it was uploaded."""
    def make(name="phone.mp4", frames=30, size=(48, 80), fps=15):
        nbp.write_video(tmp_path / name, torch.rand(3, frames, *size), fps)
        return str(tmp_path / name)
    return make


def test_a_clip_appears_block_by_block(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(actions, "EVERY_S", 0)
    ticks = SimpleNamespace(perf_counter=partial(next, count()), time=time.time, time_ns=time.time_ns)
    monkeypatch.setattr(actions, "time", ticks)    # a picture takes as long as a step, so that each step is shown
    shown = list(actions.generate(pipe, tmp_path, "maze", None, 3, 0.8, 16000, 0.95, 1))
    first, last = re.match(r"step (\d): (\d+) of 80 tokens", shown[0].words), re.match(r"17 frames in (\d+) steps",
                                                                                      shown[-1].words)
    assert int(first[1]) <= 4 <= int(first[2]) < 20 and 5 <= int(last[1]) < 23, "a step may finish several blocks"
    dark = [float((one.picture < 40).mean()) for one in shown]
    assert dark[0] > 0.75 > dark[len(dark) // 2] > dark[-1], "dark cells are not drawn yet"
    assert all(one.path is None for one in shown[:-1]) and nbp.probe(shown[-1].path).num_frames == 17
    [video] = pipe(classes=["maze"], seed=3)
    assert (nbp.read_video(shown[-1].path)[:, :, 4::8, 4::8] - video).abs().mean() < 0.03, "each pixel is a square of 8"


def test_an_upload_is_continued_from_its_first_frames(pipe, tmp_path):
    bright = torch.arange(60).div(60)[None, :, None, None].expand(3, -1, 32, 32)
    nbp.write_video(tmp_path / "bright.mp4", bright, 15)
    video = actions.take_upload(pipe, str(tmp_path / "bright.mp4"))
    assert (video.mean((0, 2, 3)) - torch.arange(17) / 60).abs().max() < 0.03


def test_an_upload_is_continued_and_deleted(pipe, tmp_path, upload):
    path = upload()
    video = actions.take_upload(pipe, path)
    assert video.shape == (3, 17, 32, 32) and not os.path.exists(path)
    shown = list(actions.extend(pipe, tmp_path, video, 5, 33, "maze", 0, 1.0))
    assert nbp.probe(shown[-1].path).num_frames == 33


def test_next_block_is_compared_with_next_token(pipe):
    *_, (block, token) = actions.race(pipe, "maze", 0)
    assert block.words.startswith("next block: step 23")
    assert token.words.startswith("next token, random weights: step 80")
    assert "times as fast" in token.words and token.picture.min() == 200, "everything is drawn"


def test_a_reconstruction_shows_its_tokens(pipe, tmp_path, upload):
    [shown] = actions.reconstruct(pipe, tmp_path, actions.take_upload(pipe, upload()))
    assert "PSNR" in shown.words and "80 tokens" in shown.words and nbp.probe(shown.path).width == 512
    assert len(np.unique(shown.picture.reshape(-1, 3), axis=0)) > 10


def test_a_model_that_only_continues_has_a_page_without_what_begins(tmp_path):
    pytest.importorskip("gradio", reason="extra demo")
    page = build(make_pipeline("none", start="plain", begin_token=False), "k600", {}, tmp_path)
    tabs = [block["props"]["label"] for block in page.config["components"] if block["type"] == "tabitem"]
    assert tabs == ["Continue", "Reconstruct"]


def test_clips_of_before_are_removed(tmp_path):
    first = actions.write_clip(tmp_path, torch.rand(3, 2, 32, 32), 8)
    os.utime(first, (0, 0))
    second = actions.write_clip(tmp_path, torch.rand(3, 2, 32, 32), 8)
    assert [str(path) for path in tmp_path.iterdir()] == [second]


def test_a_clip_that_another_visitor_removes_meanwhile_stops_nothing(tmp_path):
    (tmp_path / "clip-1.mp4").symlink_to(tmp_path / "gone")          # listed, and not there when it is asked for
    assert Path(actions.write_clip(tmp_path, torch.rand(3, 2, 32, 32), 8)).is_file()


def turned(path):
    """A phone's video: stored lying, with a note that players turn it upright; its left half is bright."""
    frames = np.zeros((30, 48, 80, 3), np.uint8)
    frames[:, :24] = 230                    # the upper half of what is stored
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=15, width=80, height=48, pix_fmt="yuv420p")
        stream.set_display_rotation(90)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def test_a_phone_s_video_is_read_upright(pipe, tmp_path):
    turned(tmp_path / "turned.mp4")
    video = actions.take_upload(pipe, str(tmp_path / "turned.mp4"))
    assert video[..., :12].mean() > 0.7 and video[..., 20:].mean() < 0.3, "counter-clockwise by 90 degrees"


def wrong_uploads(folder):
    """{name: (path, words)} of files that are no clips."""
    (folder / "notes.mp4").write_text("no video")
    (folder / "empty.mp4").write_bytes(b"")
    nbp.write_video(folder / "one.mp4", torch.rand(3, 1, 32, 32), 15)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48000
        for frame in (sound, None):
            container.mux(stream.encode(frame))
    return {"notes.mp4": "notes.mp4: cannot be decoded", "empty.mp4": "empty.mp4: the file is empty",
            "one.mp4": "one.mp4: too short", "sound.mp4": "sound.mp4: the file holds no video stream"}


def test_a_wrong_upload_is_told_as_on_the_command_line(pipe, tmp_path):
    for name, words in wrong_uploads(tmp_path).items():
        with pytest.raises(ValueError) as direct:
            nbp.read_video(tmp_path / name, pipe.num_frames, pipe.fps, pipe.size)
        with pytest.raises(ValueError) as page:
            actions.take_upload(pipe, str(tmp_path / name))
        assert str(page.value).startswith(words)
        assert str(direct.value).replace(f"{tmp_path}/", "") == str(page.value), "but for the server's folders"
        assert not (tmp_path / name).exists()


def test_a_playlist_shows_no_file_of_the_server(pipe, tmp_path, upload):
    secret = upload("secret.mp4")
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n"
    for name, words in (("list.m3u8", "list.m3u8 has none of the suffixes of videos"), ("list.mp4", "list.mp4: ")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=words):
            actions.take_upload(pipe, str(tmp_path / name))
        assert not (tmp_path / name).exists()
    (tmp_path / "list.m3u8").write_text(text)
    with pytest.raises(VideoError, match="is a list of other files, not a video|cannot be decoded"):
        nbp.read_video(tmp_path / "list.m3u8")


def test_limits_of_an_upload_are_told(pipe, upload, monkeypatch):
    monkeypatch.setattr(actions, "MAX_SECONDS", 1)
    with pytest.raises(ValueError, match="long.mp4: lasts 2 s; at most 1 s"):
        actions.take_upload(pipe, upload("long.mp4"))
    monkeypatch.setattr(actions, "MAX_SECONDS", 600)
    monkeypatch.setattr(actions, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="large.mp4: has 80x48 pixels"):
        actions.take_upload(pipe, upload("large.mp4"))
    with pytest.raises(ValueError, match="choose a video first"):
        actions.take_upload(pipe, None)


def test_a_mistake_has_the_words_of_the_pipeline(pipe, tmp_path):
    [shown] = actions.told(actions.generate, pipe, tmp_path, "maze", None, 0, 0, 0, 1, 1)
    with pytest.raises(ValueError) as error:
        pipe(classes=["maze"], temperature=0)
    assert shown.words == str(error.value) and shown.picture is None


def test_a_bug_stays_a_bug(pipe, tmp_path):
    with pytest.raises(TypeError):
        list(actions.told(actions.generate, pipe, tmp_path))


def test_the_command_names_a_model_that_is_not_there():
    with pytest.raises(ValueError, match="nowhere is not a model folder"):
        demo.main(["nowhere", "--device", "cpu"])


@pytest.fixture
def page(folder, tmp_path):
    """(browser on a page that is served, function(css) -> element once it is there, folder of its held-out clips)."""
    for name in ("gradio", "selenium"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed (extra demo)")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium or chromedriver is not installed")
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = RELEASED if (RELEASED / "model_index.json").is_file() else folder
    clips = os.environ.get("NBP_DEMO_CLIPS", str(folder / "examples"))
    kept = tmp_path / "server"
    kept.mkdir()
    server = subprocess.Popen([sys.executable, "-m", "nbp.demo", str(model), "--clips", clips, "--port", str(port),
                               "--device", "cpu"], cwd=ROOT,
                              env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1",
                                                "TMPDIR": str(kept)})
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-dev-shm-usage",
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 f"user-data-dir={tmp_path / 'profile'}", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    browser = None
    try:
        wait_for(port, server)
        browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        browser.get(f"http://127.0.0.1:{port}")
        yield browser, lambda css: WebDriverWait(browser, 120).until(
            lambda found: found.find_element(By.CSS_SELECTOR, css)), Path(clips)
    finally:
        if browser is not None:
            browser.quit()
        server.terminate()
        server.wait(60)
    assert not list(kept.glob("nbp-demo-*")), "nothing stays when the page is closed"


def wait_for(port, server):
    for _ in range(600):
        assert server.poll() is None, "the page could not be served"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError


FIRST_BLOCK = """
const done = arguments[0], start = performance.now();
const watch = setInterval(() => {
    const words = document.querySelector("#generate-words"), picture = document.querySelector("#generate-picture img");
    const drawn = words && words.innerText.match(/step \\d+: (\\d+) of/);
    if (drawn && drawn[1] > 0 && picture && picture.complete && picture.naturalWidth) {
        clearInterval(watch);
        done(performance.now() - start);
    }
}, 10);
document.querySelector("button#generate").click();
"""


@pytest.mark.slow
def test_every_tab_by_clicks(page, tmp_path, upload):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    browser, find, examples = page
    browser.set_script_timeout(120)

    def tab(name):
        WebDriverWait(browser, 120).until(lambda found: [
            button for button in found.find_elements(By.CSS_SELECTOR, "button[role=tab]")
            if button.text == name and (button.click() or True)])

    def words(css, text):
        WebDriverWait(browser, 240).until(lambda _: text in find(css).text)
        return find(css).text

    def keep(name, wait_s=1):       # a video that starts
        if folder := os.environ.get("NBP_SCREENSHOTS"):
            time.sleep(wait_s)
            browser.save_screenshot(f"{folder}/{name}.png")

    def send(name, path):
        find(f"#{name}-upload input[type=file]").send_keys(str(path))

    def choose(name):
        find(f"#{name}-clip input").click()
        find(f"#{name}-clip ul[role=listbox] li").click()
        words(f"#{name}-words", f"{sorted(examples.glob('*'))[0].name} is read")

    find("button#generate")
    first = browser.execute_async_script(FIRST_BLOCK) / 1000
    print(f"first block {first:.2f} s after the click")     # the script fails where none comes
    keep("demo-block-by-block", 0.3)
    words("#generate-words", "17 frames in")
    find("#generate-picture img"), find("#generate-video video")
    keep("demo-generate")
    find("#seed input").send_keys(Keys.CONTROL, "a", Keys.BACKSPACE)
    find("button#generate").click()
    words("#generate-words", "seed must be a whole number")

    tab("Continue")
    send("continue", upload())
    words("#continue-words", "phone.mp4 is read")
    choose("continue")
    find("button#continue").click()
    words("#continue-words", "17 frames in")
    find("#continue-video video")
    keep("demo-continue")

    tab("Next block against next token")
    find("button#race").click()
    assert "random weights: step" in words("#race-token-words", "times as fast")
    keep("demo-race")

    tab("Reconstruct")
    for name, message in wrong_uploads(tmp_path).items():
        send("reconstruct", tmp_path / name)
        words("#reconstruct-words", message)
        find("#reconstruct-upload button[aria-label='Remove this file'], #reconstruct-upload button[aria-label=Clear]"
             ).click()
    turned(tmp_path / "turned.mp4")
    send("reconstruct", tmp_path / "turned.mp4")
    words("#reconstruct-words", "turned.mp4 is read")
    find("button#reconstruct").click()
    words("#reconstruct-words", "PSNR")
    choose("reconstruct")
    find("button#reconstruct").click()
    words("#reconstruct-words", "PSNR")
    find("#reconstruct-video video")
    keep("demo-reconstruct")
    find("#reconstruct-upload button[aria-label='Remove this file'], #reconstruct-upload button[aria-label=Clear]"
         ).click()
    with open(tmp_path / "huge.mp4", "wb") as file:
        file.truncate(2 << 30)
    send("reconstruct", tmp_path / "huge.mp4")
    WebDriverWait(browser, 60).until(lambda found: "maximum allowed size of 64" in found.find_element(
        By.CSS_SELECTOR, "body").text)
    keep("demo-message")
    kept = [path for path in (tmp_path / "server").rglob("*") if path.is_file()]
    assert kept and all(path.name.startswith("clip-") for path in kept if path.suffix == ".mp4"), "no upload is kept"
    assert max(path.stat().st_size for path in kept) < 1 << 20
