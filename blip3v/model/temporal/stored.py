"""Finds out which temporal encoder an authors' checkpoint holds, from the names and shapes of its tensors.

Nothing else in such a checkpoint says so. Each encoder's file knows its own form (``EncoderSpec.find``); this module
tries them in turn and holds the helpers that they read shapes with. Not here: whether every tensor of that encoder is
present, which ``released_names.py`` checks against the model built from the result.
"""

# Shapes: D width, M tokens of a TokenLearner.

from __future__ import annotations

from blip3v.config import ModelConfig
from blip3v.errors import ArtifactError, UsageError
from blip3v.model.temporal.registry import encoder_names, find_encoder
from blip3v.model.temporal.spec import CheckpointForm, Shapes
from blip3v.model.weight_file import UnusedKey

__all__ = [
    "HEAD",
    "find_form",
    "has_part",
    "num_layers",
    "num_tokens",
    "parts",
    "token_learners",
    "unused",
    "unused_token_learner",
    "weightless",
]

HEAD = "final_output"  # our encoders' name for the TokenLearner whose tokens are the output

_MAX_LISTED = 8
_LEARNER_PARTS = ("norm.weight", "norm.bias", "mlp.0.weight", "mlp.0.bias", "mlp.1.weight", "mlp.3.weight")


def find_form(shapes: Shapes, config: ModelConfig, *, requested: str | None = None) -> tuple[str, CheckpointForm]:
    """Returns the encoder whose tensors these are, and its form.

    Args:
        shapes: of the tensors under ``temporal_encoder.``, by the rest of their names.
        config: the model; its temporal encoder is ignored.
        requested: the encoder that the user named; None: not given.

    Raises:
        UsageError: the tensors fit several encoders and ``requested`` is None, or they are not those of ``requested``.
        ArtifactError: tensors of no known encoder.
        ConfigError: an encoder of another package cannot be used.
    """
    names = encoder_names()
    if requested is not None and requested not in names:
        raise UsageError(f"encoder {requested!r} is unknown; allowed: {', '.join(names)}")
    found = {name: find_encoder(name).find(shapes, config) for name in names}
    forms = {name: form for name, form in found.items() if form is not None}
    if not forms:
        raise _unknown(shapes, config)
    if requested is None and len(forms) == 1:
        return next(iter(forms.items()))
    if requested in forms:
        return requested, forms[requested]
    contents = "no tensors of a temporal encoder" if not shapes else "tensors that fit more than one temporal encoder"
    if requested is None:
        raise UsageError(
            f"the checkpoint holds {contents}, so its encoder may be any of {', '.join(forms)}",
            remedy="run `blip3v convert` with the right one as `encoder`",
        )
    if not shapes:
        raise UsageError(f"the checkpoint holds {contents}, but {requested} has some; allowed: {', '.join(forms)}")
    raise UsageError(
        f"the checkpoint holds the tensors of the encoder {' or '.join(forms)}, not {requested}; leave the encoder out"
    )


def weightless(shapes: Shapes, config: ModelConfig) -> CheckpointForm | None:
    """``EncoderSpec.find`` of an encoder without weights, which nothing tells apart from the others without any."""
    return None if shapes else CheckpointForm()


def parts(shapes: Shapes) -> set[str]:
    """Returns the part of each name before the first dot."""
    return {name.partition(".")[0] for name in shapes}


def has_part(shapes: Shapes, part: str) -> bool:
    """Whether there is a tensor under ``part``."""
    return any(name.startswith(part + ".") for name in shapes)


def num_layers(shapes: Shapes, part: str) -> int:
    """Returns the number of layers under ``part``."""
    prefix = part + "."
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def num_tokens(shapes: Shapes, learner: str, *, mlp: str = "mlp.") -> int:
    """Returns M of the TokenLearner ``learner``, from the last matrix of its MLP, which is (M, 2M).

    Raises:
        ArtifactError: the matrix is missing or has another shape.
    """
    name = f"{learner}.{mlp}3.weight"
    shape = shapes.get(name)
    if shape is None:
        raise ArtifactError(
            f"missing temporal_encoder.{name}, whose shape (M, 2M) tells the number of tokens of {learner}"
        )
    if len(shape) != 2 or shape[1] != 2 * shape[0]:
        raise ArtifactError(f"temporal_encoder.{name} has shape {shape}, expected (M, 2M) for M tokens")
    return shape[0]


def token_learners(shapes: Shapes) -> set[str]:
    """Returns the parts whose tensors are named like a TokenLearner's."""
    last = "." + _LEARNER_PARTS[-1]
    return {name.removesuffix(last) for name in shapes if name.endswith(last)}


def unused(part: str, shapes: Shapes, why: str) -> tuple[UnusedKey, ...]:
    """Lists the tensors of a part that the authors' code builds and never reads; ``shapes`` are the required ones."""
    return tuple(UnusedKey(f"{part}.{name}", shape, why) for name, shape in shapes.items())


def unused_token_learner(part: str, shapes: Shapes, config: ModelConfig, why: str) -> tuple[UnusedKey, ...]:
    """``unused`` for a TokenLearner; empty if the checkpoint does not hold it."""
    if not has_part(shapes, part):
        return ()
    width, count = config.vision.hidden_size, num_tokens(shapes, part)
    matrices = {"mlp.1.weight": (2 * count, width), "mlp.3.weight": (count, 2 * count)}
    return unused(part, {name: matrices.get(name, (width,)) for name in _LEARNER_PARTS}, why)


def _unknown(shapes: Shapes, config: ModelConfig) -> ArtifactError:
    names = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())[:_MAX_LISTED])
    known = [name for name in encoder_names() if find_encoder(name).find({}, config) is None]
    return ArtifactError(
        f"the {len(shapes)} tensors of the temporal encoder match no known encoder: {names}; allowed: "
        f"{', '.join(known)}, each with the names of its authors' code"
    )
