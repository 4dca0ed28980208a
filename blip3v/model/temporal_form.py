"""Which temporal encoder a checkpoint holds, from the names and shapes of its tensors.

The authors' checkpoints do not say it anywhere else. What is not here: whether every tensor of that encoder is there,
which ``released_names.py`` compares with the model built from the answer.
"""

# Shapes: D width, N groups or latents, G slots of a group, M tokens of a TokenLearner.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blip3v.config import ENCODERS, EncoderName, ModelConfig
from blip3v.errors import ArtifactError, UsageError

__all__ = ["WEIGHTLESS", "TemporalForm", "find_form", "token_learner_shapes"]

Shapes = Mapping[str, tuple[int, ...]]

# Their checkpoints hold no tensor of the temporal encoder, so nothing tells them apart.
WEIGHTLESS: tuple[EncoderName, ...] = ("mean", "max", "space-time-pool", "perceiver", "none", "single-frame")

_PER_FRAME_TOKENS = 4  # what the authors' per-frame TokenLearner gives; over all frames it gives 16 or more
_HEAD = "final_output"  # what our encoders call a TokenLearner that gives the tokens out
_MOST_LISTED = 8
_LEARNER_PARTS = ("norm.weight", "norm.bias", "mlp.0.weight", "mlp.0.bias", "mlp.1.weight", "mlp.3.weight")


@dataclass(frozen=True, kw_only=True)
class TemporalForm:
    """A temporal encoder as a checkpoint holds it."""

    encoder: EncoderName
    num_video_tokens: int | None = None  # None: the encoder's usual count
    options: Mapping[str, object] = field(default_factory=dict)  # fields of TemporalConfig that the shapes give
    renamed: Mapping[str, str] = field(default_factory=dict)  # a part's name in the checkpoint -> in our model
    dead: Mapping[str, tuple[str, Shapes]] = field(default_factory=dict)  # unused part -> reason, names and shapes

    def config(self, base: ModelConfig, num_frames: int) -> ModelConfig:
        """``base`` with this encoder."""
        return base.with_encoder(
            self.encoder, num_video_tokens=self.num_video_tokens, num_frames=num_frames, **dict(self.options)
        )


def find_form(shapes: Shapes, *, width: int, num_frames: int, asked: str | None = None) -> TemporalForm:
    """The encoder whose tensors these are.

    Args:
        shapes: of the tensors under ``temporal_encoder.``, by the name after it.
        width: D.
        num_frames: frames of a clip, which some counts grow with.
        asked: what the user says the encoder is; None: nothing was said.

    Raises:
        UsageError: no tensors and ``asked`` is None, or ``asked`` is not what the tensors are.
        ArtifactError: tensors of no known encoder.
    """
    if asked is not None and asked not in ENCODERS:
        raise UsageError(f"encoder {asked!r} is unknown; allowed: {', '.join(ENCODERS)}")
    if not shapes:
        return _weightless(asked)
    form = _with_weights(shapes, width, num_frames)
    if asked is not None and asked != form.encoder:
        raise UsageError(f"the checkpoint holds the tensors of the encoder {form.encoder}, not {asked}; leave it out")
    return form


def token_learner_shapes(name: str, num_tokens: int, width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the TokenLearner ``name`` that gives ``num_tokens`` tokens of ``width``."""
    vectors = {f"{name}.{part}": (width,) for part in _LEARNER_PARTS[:4]}
    return {
        **vectors,
        f"{name}.mlp.1.weight": (2 * num_tokens, width),
        f"{name}.mlp.3.weight": (num_tokens, 2 * num_tokens),
    }


def _weightless(asked: str | None) -> TemporalForm:
    if asked is None:
        raise UsageError(
            f"the checkpoint holds no tensors of a temporal encoder, so it may be any of {', '.join(WEIGHTLESS)}",
            remedy="run `blip3v convert` with the right one as `encoder`",
        )
    for encoder in WEIGHTLESS:
        if asked == encoder:
            return TemporalForm(encoder=encoder)
    raise UsageError(
        f"the checkpoint holds no tensors of a temporal encoder, and {asked} has some; allowed: {', '.join(WEIGHTLESS)}"
    )


def _with_weights(shapes: Shapes, width: int, num_frames: int) -> TemporalForm:
    if _has(shapes, "expand_mlp"):
        return _mambalike(shapes)
    if _has(shapes, "ttm_unit"):
        memory = shapes.get("initial_memory")
        grouped = not _has(shapes, "ttm_unit.output_layer") if memory is None else len(memory) == 3
        return _gttm(shapes, width) if grouped else _ttm(shapes, width, num_frames)
    if _has(shapes, "process_layers"):
        return TemporalForm(encoder="transformer", options={"num_layers": _num_layers(shapes, "process_layers.")})
    if _has(shapes, _HEAD):
        return _token_learner(shapes, num_frames)
    names = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())[:_MOST_LISTED])
    raise ArtifactError(
        f"the {len(shapes)} tensors of the temporal encoder are those of no known one: {names}; known are gttm, ttm, "
        "transformer, tokenlearner, per-frame and mambalike as the authors' code names their tensors"
    )


def _token_learner(shapes: Shapes, num_frames: int) -> TemporalForm:
    num_video_tokens = _num_tokens(shapes, _HEAD)
    if num_video_tokens == _PER_FRAME_TOKENS:
        return TemporalForm(encoder="per-frame", num_video_tokens=num_video_tokens * num_frames)
    return TemporalForm(
        encoder="tokenlearner", num_video_tokens=num_video_tokens, options={"time_stamps": "pos_emb.inv_freq" in shapes}
    )


def _gttm(shapes: Shapes, width: int) -> TemporalForm:
    """The released form, or with a TokenLearner of any name more: the attentional pooling of the paper."""
    unused = "ttm_unit.read_layer"
    layers, slots = _num_layers(shapes, "ttm_unit.process_layers."), _num_tokens(shapes, "ttm_unit.write_layer")
    options: dict[str, object] = {"num_layers": layers, "num_slots": slots}
    dead = {}
    if _has(shapes, unused):
        reason = "the read layer of grouped memories is built and never called"
        dead[unused] = (reason, token_learner_shapes(unused, _num_tokens(shapes, unused), width))
    heads = _learners(shapes) - {unused, "ttm_unit.write_layer"}
    if len(heads) > 1:
        raise ArtifactError(
            f"the temporal encoder has the TokenLearners {', '.join(sorted(heads))}; gttm has at most one beside its "
            "read and write layers, which pools the memory"
        )
    if not heads:
        return TemporalForm(encoder="gttm", options={**options, "pooling": "mean"}, dead=dead)
    head = heads.pop()
    return TemporalForm(
        encoder="gttm",
        num_video_tokens=_num_tokens(shapes, head),
        options={**options, "pooling": "attention"},
        renamed={head: _HEAD},
        dead=dead,
    )


def _mambalike(shapes: Shapes) -> TemporalForm:
    num_slots = _num_tokens(shapes, "expand_mlp", prefix="")
    options: dict[str, object] = {"num_slots": num_slots, "pooling": "mean"}
    unused, dead = "expand_mlp2", {}
    if _has(shapes, unused):
        inner = {f"{unused}.1.weight": (2 * num_slots, 1), f"{unused}.3.weight": (num_slots, 2 * num_slots)}
        parts = {f"{unused}.0.weight": (1,), f"{unused}.0.bias": (1,), **inner}
        dead[unused] = ("both gates come from the first MLP", parts)
    if not _has(shapes, _HEAD):
        return TemporalForm(encoder="mambalike", options=options, dead=dead)
    options["pooling"] = "attention"
    return TemporalForm(encoder="mambalike", num_video_tokens=_num_tokens(shapes, _HEAD), options=options, dead=dead)


def _ttm(shapes: Shapes, width: int, num_frames: int) -> TemporalForm:
    """Of the authors' two, the one with time stamps gives its memory out and does not use its output layer."""
    output = "ttm_unit.output_layer"
    memory_tokens = _num_tokens(shapes, "ttm_unit.write_layer")
    options: dict[str, object] = {
        "num_layers": _num_layers(shapes, "ttm_unit.process_layers."),
        "process_tokens": _num_tokens(shapes, "ttm_unit.read_layer"),
        "memory_tokens": memory_tokens,
        "time_stamps": "pos_emb.inv_freq" in shapes,
    }
    if not options["time_stamps"] and _has(shapes, output):
        step_tokens = _num_tokens(shapes, output)
        options |= {"step_tokens": step_tokens, "memory_output": False}
        return TemporalForm(encoder="ttm", num_video_tokens=step_tokens * num_frames, options=options)
    dead = {}
    if _has(shapes, output):
        reason = "the memory is the output, and the output layer is not called"
        dead[output] = (reason, token_learner_shapes(output, _num_tokens(shapes, output), width))
    options["memory_output"] = True
    return TemporalForm(encoder="ttm", num_video_tokens=memory_tokens, options=options, dead=dead)


def _has(shapes: Shapes, part: str) -> bool:
    return any(name.startswith(part + ".") for name in shapes)


def _learners(shapes: Shapes) -> set[str]:
    """Names of the parts whose tensors are named as a TokenLearner's."""
    last = "." + _LEARNER_PARTS[-1]
    return {name.removesuffix(last) for name in shapes if name.endswith(last)}


def _num_tokens(shapes: Shapes, learner: str, prefix: str = "mlp.") -> int:
    """M, from the last matrix of an MLP, which is (M, 2M)."""
    name = f"{learner}.{prefix}3.weight"
    shape = shapes.get(name)
    if shape is None:
        raise ArtifactError(
            f"missing temporal_encoder.{name}, whose shape (M, 2M) says how many tokens {learner} gives"
        )
    if len(shape) != 2 or shape[1] != 2 * shape[0]:
        raise ArtifactError(f"temporal_encoder.{name} has shape {shape}, expected (M, 2M) for M tokens")
    return shape[0]


def _num_layers(shapes: Shapes, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})
