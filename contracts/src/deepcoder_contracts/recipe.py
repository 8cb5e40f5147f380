"""GRPO+ settings: one schema for the custom resource, the stage config and a researcher's own file.

Defaults are those of the published recipe (DeepCoder-14B, agentica-project/rllm, scripts/deepcoder/train at 874daa4,
with the 128/64 batch of the 32K script, which the accompanying text gives for both stages). A run's spec stores only
the fields that were set. The resolved recipe is frozen into the run's ConfigMap, so a later change of a default never
affects an existing run.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, ValidationError, model_validator

from deepcoder_contracts.base import Contract


class Advantage(StrEnum):
    """How the rewards of a prompt's group become advantages."""

    STD = "Std"
    MEAN_ONLY = "MeanOnly"


class Overlong(StrEnum):
    """How to treat a sample that reached the response limit and earned no reward."""

    ZERO_ADVANTAGE = "ZeroAdvantage"
    DROP_FROM_MASK = "DropFromMask"
    OFF = "Off"


class Loss(StrEnum):
    """Policy loss: the clipped surrogate, or CISPO (clipped ratio as a constant weight on the log-probability)."""

    CLIP = "Clip"
    CISPO = "Cispo"


class OldLogprobs(StrEnum):
    """Log-probabilities in the denominator of the ratio."""

    BEHAVIOUR = "Behaviour"
    RECOMPUTE = "Recompute"


class Importance(StrEnum):
    """Whether each token's loss term gets an importance weight."""

    TRUNCATED = "Truncated"
    OFF = "Off"


class Order(StrEnum):
    """Strict: batch k is a fixed set of groups. Window: batches form as groups finish, within the staleness bound."""

    STRICT = "Strict"
    WINDOW = "Window"


class Precision(StrEnum):
    """Number format of the forward and backward pass. Master weights are always float32."""

    BFLOAT16 = "BFloat16"
    FLOAT32 = "Float32"

    @property
    def dtype(self) -> str:
        """The name that torch, vLLM and config.json use."""
        return self.value.lower()


class Recipe(Contract):
    """GRPO+ hyperparameters."""

    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Random seed, from which every random choice of the trainer derives. Sampled tokens derive from it only in
    evaluations and in deterministic runs; otherwise they also depend on the order of requests at each vLLM engine."""

    prompts_per_step: int = Field(default=128, ge=1, le=65536)
    """Number of problems in one training step. Must be a multiple of optimizerSteps."""

    group_size: int = Field(default=8, ge=2, le=1024)
    """Number of responses sampled for each problem. Their rewards are normalised together."""

    optimizer_steps: int = Field(default=2, ge=1, le=64)
    """Number of optimizer steps in one training step. The batch is split into as many mini-batches of whole groups."""

    learning_rate: float = Field(default=1e-6, gt=0, le=1)
    """Learning rate of AdamW. It is constant."""

    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """Decoupled weight decay of AdamW."""

    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay rate of AdamW's first moment."""

    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay rate of AdamW's second moment."""

    grad_clip: float = Field(default=1.0, gt=0)
    """Global norm to which gradients are clipped."""

    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """Lower clipping distance: the probability ratio is clipped at 1 - clipLow."""

    clip_high: float = Field(default=0.28, ge=0)
    """Upper clipping distance: the probability ratio is clipped at 1 + clipHigh."""

    temperature: float = Field(default=0.6, gt=0, le=2)
    """Sampling temperature of training rollouts. The learner divides its logits by the same number."""

    advantage: Advantage = Advantage.STD
    """Advantage of a sample in its group. Std: (reward - mean) / (unbiased std + 1e-6). MeanOnly: reward - mean."""

    overlong: Overlong = Overlong.ZERO_ADVANTAGE
    """Treatment of samples that reach the response limit and earn no reward. ZeroAdvantage: keep their tokens in the
    loss denominator only. DropFromMask: remove their tokens from the denominator too. Off: train on them."""

    loss: Loss = Loss.CLIP
    """Policy loss. Clip: PPO's clipped surrogate, with separate bounds. Cispo: clipped ratio as a detached weight."""

    old_logprobs: OldLogprobs | None = None
    """Log-probabilities in the denominator of the ratio. Behaviour: the sampler's. Recompute: the learner's at the
    start of the step. Default: Recompute if maxOffPolicy is 0, else Behaviour."""

    tis_cap: float = Field(default=2.0, gt=0)
    """Upper bound of the truncated importance weight. With oldLogprobs Recompute, the weight is the recomputed
    probability over the sampler's. With Behaviour, it is the ratio itself, which clipping leaves unbounded for negative
    advantages."""

    importance: Importance = Importance.TRUNCATED
    """Importance weight of each token. Truncated: the weight that tisCap bounds. Off (quote it in YAML): no weight, as
    published; only the ratio is clipped."""

    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of an entropy bonus. The published recipe uses 0."""

    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of a KL penalty towards the starting model. With 0, as published, no reference model is loaded."""

    max_off_policy: int = Field(default=1, ge=0, le=64)
    """Largest number of weight versions between sampling a group and training on it. 0 is synchronous training; 1 with
    order Strict is one-off pipelining."""

    order: Order = Order.STRICT
    """Which groups form a training step. Strict: a fixed set. Window: those that finish first; maxOffPolicy must then
    be at least 1."""

    refill: bool = False
    """Whether groups whose rewards are all equal are replaced by new groups. The published recipe keeps them."""

    refill_limit: int = Field(default=3, ge=1, le=64)
    """Number of times a group is replaced before it is kept regardless of its rewards. Used only with refill."""

    deterministic: bool = False
    """Whether the run is repeatable to the bit at the same world size. It is slower and needs order Strict."""

    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Longest prompt, in tokens. Problems with a longer prompt are skipped and counted."""

    precision: Precision = Precision.BFLOAT16
    """Number format of the forward and backward pass."""

    tokens_per_device: int | None = Field(default=None, ge=1)
    """Number of tokens in one micro-batch on one learner device. Default: enough for one sequence of the longest
    possible length, but at least 8192."""

    activation_offload: bool = False
    """Whether each decoder layer's input is kept in host memory between forward and backward pass. This fits longer
    sequences on a device at the cost of transfer time. Results are identical to the bit."""

    sequence_parallel: int = Field(default=1, ge=1, le=8)
    """Number of learner devices that share one sequence (Ulysses)."""

    tensor_parallel: int = Field(default=1, ge=1, le=8)
    """Number of devices of one sampler's vLLM engine."""

    evaluation_temperature: float = Field(default=0.6, ge=0, le=2)
    """Sampling temperature of evaluations."""

    evaluation_top_p: float = Field(default=0.95, gt=0, le=1)
    """Top-p of evaluation sampling. Training never truncates the distribution, which would bias the ratio."""

    reward: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """Custom reward as `module:function`, importable in the trainer image. Default: the judge's verdict."""

    @property
    def resolved_old_logprobs(self) -> OldLogprobs:
        """`oldLogprobs` with its default filled in."""
        if self.old_logprobs is not None:
            return self.old_logprobs
        return OldLogprobs.RECOMPUTE if self.max_off_policy == 0 else OldLogprobs.BEHAVIOUR

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.order is Order.WINDOW and self.max_off_policy == 0:
            raise ValueError("order Window needs maxOffPolicy of at least 1: set maxOffPolicy: 1, or order: Strict")
        if self.deterministic and self.order is not Order.STRICT:
            raise ValueError("deterministic needs order: Strict, because a window depends on completion order")
        if self.deterministic and self.refill:
            raise ValueError(
                "deterministic samples groups in whole waves, which refill would break up: set refill: false, or "
                "deterministic: false"
            )
        if self.prompts_per_step % self.optimizer_steps:
            raise ValueError(
                f"promptsPerStep {self.prompts_per_step} cannot be split into optimizerSteps {self.optimizer_steps} "
                "equal mini-batches: make promptsPerStep a multiple of optimizerSteps"
            )
        return self


class StageRecipe(Contract):
    """Settings of one stage that override the run's recipe. A field that is left out keeps the run's value."""

    prompts_per_step: int | None = Field(default=None, ge=1, le=65536)
    """Number of problems in one training step of this stage."""

    group_size: int | None = Field(default=None, ge=2, le=1024)
    """Number of responses sampled for each problem."""

    optimizer_steps: int | None = Field(default=None, ge=1, le=64)
    """Number of optimizer steps in one training step. It must divide promptsPerStep."""

    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Learning rate of AdamW."""

    overlong: Overlong | None = None
    """Treatment of samples that reach the response limit, as in spec.recipe. Quote Off in YAML."""

    tokens_per_device: int | None = Field(default=None, ge=1)
    """Number of tokens in one micro-batch on one learner device."""

    def over(self, recipe: Recipe) -> Recipe:
        """Return the stage's recipe without validating it. `misfit` says whether it is valid."""
        return recipe.model_copy(update={name: value for name, value in self if value is not None})

    def misfit(self, recipe: Recipe) -> str | None:
        """Return why the stage's recipe is invalid, or None if it is valid."""
        try:
            Recipe.model_validate(dict(self.over(recipe)))
        except ValidationError as error:
            return "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors(include_url=False))
        return None
