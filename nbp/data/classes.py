"""Class names and the text that stands for them. UCF-101's names are in id order (sorted)."""

import re
from pathlib import Path

from nbp.data.annotations import read_lines

UCF101_CLASSES = tuple("""
    ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BaseballPitch Basketball
    BasketballDunk BenchPress Biking Billiards BlowDryHair BlowingCandles BodyWeightSquats Bowling
    BoxingPunchingBag BoxingSpeedBag BreastStroke BrushingTeeth CleanAndJerk CliffDiving CricketBowling
    CricketShot CuttingInKitchen Diving Drumming Fencing FieldHockeyPenalty FloorGymnastics FrisbeeCatch
    FrontCrawl GolfSwing Haircut HammerThrow Hammering HandstandPushups HandstandWalking HeadMassage HighJump
    HorseRace HorseRiding HulaHoop IceDancing JavelinThrow JugglingBalls JumpRope JumpingJack Kayaking
    Knitting LongJump Lunges MilitaryParade Mixing MoppingFloor Nunchucks ParallelBars PizzaTossing
    PlayingCello PlayingDaf PlayingDhol PlayingFlute PlayingGuitar PlayingPiano PlayingSitar PlayingTabla
    PlayingViolin PoleVault PommelHorse PullUps Punch PushUps Rafting RockClimbingIndoor RopeClimbing Rowing
    SalsaSpin ShavingBeard Shotput SkateBoarding Skiing Skijet SkyDiving SoccerJuggling SoccerPenalty
    StillRings SumoWrestling Surfing Swing TableTennisShot TaiChi TennisSwing ThrowDiscus TrampolineJumping
    Typing UnevenBars VolleyballSpiking WalkingWithDog WallPushups WritingOnBoard YoYo
""".split())


def class_text(name: str) -> str:
    """Lower-case words of a class name: "ApplyEyeMakeup" -> "apply eye makeup"; other spellings are only lowered."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()


def read_classes(path: str | Path) -> list[str]:
    """Words of every class in a classes.txt, in id order.

    Raises:
        ValueError: the file is missing or empty.
    """
    path = Path(path)
    names = read_lines(path) if path.is_file() else []
    texts = [class_text(name.strip()) for name in names if name.strip()]
    if not texts:
        raise ValueError(f"{path} holds no class names; `python -m nbp.prepare` writes it, one name a line")
    return texts
