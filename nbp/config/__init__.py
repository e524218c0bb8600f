"""Run configuration: dataclass defaults < YAML files (`base: [...]` merged in order) < dotted command line.

Architecture and data fields have no default: a missing one is an error.
"""

from nbp.config.checking import build_config
from nbp.config.loading import config_digest, load_config, load_run, save_config, to_dict
from nbp.config.models import GeneratorConfig, OfficialQuirks, TokenizerConfig
from nbp.config.runs import DataConfig, DiscriminatorConfig, GeneratorRun, ImageConfig, TokenizerRun, TrainerConfig

__all__ = ["DataConfig", "DiscriminatorConfig", "GeneratorConfig", "GeneratorRun", "ImageConfig", "OfficialQuirks",
           "TokenizerConfig", "TokenizerRun", "TrainerConfig", "build_config", "config_digest", "load_config",
           "load_run", "save_config", "to_dict"]
