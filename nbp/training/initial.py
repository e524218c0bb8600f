"""Start a training run from existing weights: the run fields `init_from` and, for images to video, `inflate_from`."""

import dataclasses

from nbp.generator.model import Generator
from nbp.hub import models
from nbp.tokenizer.inflation import inflate
from nbp.tokenizer.model import Tokenizer

# Fields that give no tensor another shape or meaning: clip size, training options, how ids are drawn and masked.
FREE_FIELDS = {"grid", "dropout", "condition_dropout", "activation_checkpointing", "clamp_samples", "multinomial",
               "pad_token", "pad_visibility"}


def load_initial(model, kind, path):
    """Copy the weights of a checkpoint into a model of the same architecture.

    A plain generator may have another block shape than its checkpoint; a hybrid one has ids for the places in a block.

    Args:
        model: `Tokenizer` or `Generator` on CPU, changed in place.
        kind: "tokenizer" or "generator".
        path: native model folder or official file.

    Raises:
        ValueError: another kind or architecture; names the fields and both values.
    """
    source = {"tokenizer": Tokenizer, "generator": Generator}[kind].from_pretrained(path)
    free = FREE_FIELDS | ({"block_shape"} if getattr(source.config, "start", None) == "plain" else set())
    differing = [field.name for field in dataclasses.fields(model.config) if field.name not in free
                 and getattr(model.config, field.name) != getattr(source.config, field.name)]
    if differing:
        raise ValueError(f"init_from={path} holds another model: " + "; ".join(
            f"model.{name} is {getattr(model.config, name)}, there it is {getattr(source.config, name)}"
            for name in differing))
    state = source.state_dict()
    models.check_state_dict(model, state, path)
    model.load_state_dict(state)


def load_inflated(model, path):
    """Give a video tokenizer the weights of an image tokenizer, see `nbp.tokenizer.inflation`.

    Args:
        model: `Tokenizer` on CPU, changed in place.
        path: native tokenizer folder; strides and kernels may lack time.

    Raises:
        ValueError: no tokenizer there, or one whose tensors do not inflate to the model's.
    """
    _, _, state = models.load_model(path, "tokenizer")
    model.load_state_dict(inflate(state, model, f"inflate_from={path}"))
