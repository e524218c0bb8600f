"""From what a person names to scores: opens the sets, loads the network, scores and reports; `nbp.evaluate` is the
command around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nbp.evaluation.features import Clips, Extraction
from nbp.evaluation.networks import FeatureNetwork, load_network
from nbp.evaluation.protocols import PROTOCOLS, Protocol, get_protocol, parse_changes
from nbp.evaluation.scoring import evaluate_sets
from nbp.evaluation.statement import Report, write_scores
from nbp.hub.fetch import fetch_i3d
from nbp.system.distributed import barrier, rank_and_world
from nbp.system.files import check_writable
from nbp.tokenizer.model import Tokenizer
from nbp.workflows import memorisation, sensitivity
from nbp.workflows.clip_sources import Cut, open_clips, with_rate
from nbp.workflows.drift import check_stretches, report_drift


def score_sets(*, real: str | None, fake: Sequence[str] | None, run: str | None, protocol: str, changes: Sequence[str],
               split: str | None, tokenizer: str | None, train: str | None, sensitivity_report: bool,
               sensitivity_clips: int, out: str, cache: str, weights: str | None, ckpt: str, trust_torchscript: bool,
               allow_fewer: bool, intervals: bool, seed: int, batch_size: int, num_workers: int, device: str,
               drift: bool = False) -> list[Report]:
    """Score sets against a real one and write the reports, one for each; the arguments are those of the command.
    ValueError: sets, counts or settings under which a score would say something else than it seems to."""
    real_set, fake_sets = (real, fake) if real is not None and fake is not None else sets_of_run(run)
    rules = get_protocol(protocol).replace(**parse_changes(changes))
    rules = rules.replace(real_split=split) if split else rules     # its name says what is changed
    rules = with_rate(rules, real_set)
    networks = Networks(rules, weights, ckpt, device, trust_torchscript)
    network = networks.load(rules)
    decoder = None if tokenizer is None else Tokenizer.from_pretrained(tokenizer, device=device)

    def opened(source: str, cutting: Protocol, is_real: bool = False) -> Clips:
        split = "train" if cutting.real_split == "train" else "val"
        return open_clips(source, Cut.of(cutting, is_real, seed), split, decoder)

    real_clips, fake_clips = opened(real_set, rules, True), [opened(name, rules) for name in fake_sets]
    if train:
        train_clips, held_out = opened(train, rules.replace(real_split="train"), True), real_clips
        if rules.real_split == "train" and real_set.endswith((".yaml", ".yml")):  # which lists held-out clips as well
            held_out = opened(real_set, rules.replace(real_split="val"), True)
        memorisation.check_sets(train_clips, held_out, fake_clips, rules)
    if sensitivity_report:
        sensitivity.check_sets(real_clips, *fake_clips)
    if drift:
        longer = [opened(name, rules.replace(num_frames=None)) for name in fake_sets]
        check_stretches(longer, rules)
    check_writable(out, "--out ")
    check_writable(cache, "--cache ")
    how = Extraction(cache, batch_size, num_workers, *rank_and_world(), barrier)
    reports = evaluate_sets(real_clips, fake_clips, rules, network, how, allow_fewer, intervals, seed)
    if how.rank == 0:
        write_scores(out, reports, reports)
    if train:
        memorisation.report_sets(train_clips, held_out, fake_clips, rules, network, how, out, seed)
    if drift:
        report_drift(real_clips, longer, rules, network, how, out, allow_fewer, seed)
    if sensitivity_report:
        presets = [with_rate(preset, real_set) for preset in PROTOCOLS.values()]

        def pair(name: str, preset: Protocol) -> tuple[Clips, Clips]:
            return opened(real_set, preset, True), opened(name, preset)

        for number, (name, clips) in enumerate(zip(fake_sets, fake_clips)):
            stem = f"sensitivity_{number}" if len(fake_sets) > 1 else "sensitivity"     # as of `memorisation`
            sensitivity.report_pair(real_clips, clips, rules, network, how, out, stem, presets, partial(pair, name),
                                    networks.load, sensitivity_clips, seed)
    return reports


def sets_of_run(run: str | Path | None) -> tuple[str, list[str]]:
    """Real set and sets to score of a run folder such as the quickstart's; what it has set aside is left out.
    ValueError: it has no real clips or nothing to score."""
    if run is None:
        raise ValueError("give either --run, or --real and --fake")
    folder = Path(run)
    real, fakes = folder / "reconstruction" / "real.npz", sorted(folder.rglob("clips.npz"))
    fakes = [path.parent for path in fakes if not any(part.endswith(".old") for part in path.relative_to(folder).parts)]
    if not real.is_file() or not fakes:
        raise ValueError(f"{run} is not a finished run: expected {real} and folders with clips.npz")
    return str(real), [str(path) for path in fakes]


@dataclass(frozen=True)
class Networks:
    """Where the networks of protocols come from: the user's weights serve the protocol that was asked for, and others
    with weights of the same kind."""

    asked: Protocol
    weights: str | None
    ckpt: str
    device: str
    trust_torchscript: bool

    def load(self, protocol: Protocol) -> FeatureNetwork:
        return load_network(protocol.network, self.path(protocol), self.device, self.trust_torchscript)

    def path(self, protocol: Protocol) -> str | Path:
        """The user's weights, or the public Kinetics-400 I3D for the networks that it serves."""
        script = protocol.network == "i3d-styleganv"
        if self.weights and script == (self.asked.network == "i3d-styleganv"):
            return self.weights
        return Path(self.ckpt) / "i3d_torchscript.pt" if script else fetch_i3d(self.ckpt)
