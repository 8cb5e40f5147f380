"""GRPO+ settings: one schema for the custom resource, the stage config and a researcher's own file.

Defaults are the published recipe's (DeepCoder-14B, agentica-project/rllm, scripts/deepcoder/train at 874daa4, with
the 128/64 batch of the 32K script, which the accompanying text gives for both stages). Only fields a run was given
are stored in its spec; the resolved recipe is frozen into the run's ConfigMap, so that a later default never
changes a run that exists.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, ValidationError, model_validator

from deepcoder_contracts.base import Contract


class Advantage(StrEnum):
    """How rewards of one prompt's group become advantages."""

    STD = "Std"
    MEAN_ONLY = "MeanOnly"


class Overlong(StrEnum):
    """What becomes of a sample that filled the response limit and earned no reward."""

    ZERO_ADVANTAGE = "ZeroAdvantage"
    DROP_FROM_MASK = "DropFromMask"
    OFF = "Off"


class Loss(StrEnum):
    """Policy loss: the clipped surrogate, or CISPO (clipped ratio as a constant weight on the log-probability)."""

    CLIP = "Clip"
    CISPO = "Cispo"


class OldLogprobs(StrEnum):
    """Which log-probabilities the ratio is taken against."""

    BEHAVIOUR = "Behaviour"
    RECOMPUTE = "Recompute"


class Importance(StrEnum):
    """Whether a token's term is weighted by how much likelier the policy of the ratio is to produce it."""

    TRUNCATED = "Truncated"
    OFF = "Off"


class Order(StrEnum):
    """Strict: batch k is a fixed set of groups. Window: batches form as groups finish, within the staleness bound."""

    STRICT = "Strict"
    WINDOW = "Window"


class Precision(StrEnum):
    """Number format of the forward and backward pass; master weights are always float32."""

    BFLOAT16 = "BFloat16"
    FLOAT32 = "Float32"

    @property
    def dtype(self) -> str:
        """Its name in torch, vLLM and config.json."""
        return self.value.lower()


class Recipe(Contract):
    """GRPO+ hyper-parameters."""

    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Every random choice of the trainer is a function of this seed, a purpose and ids. Sampled tokens are so in
    evaluations and with deterministic; otherwise each vLLM engine draws them in the order in which requests come."""

    prompts_per_step: int = Field(default=128, ge=1, le=65536)
    """Problems in one training step (one iteration)."""

    group_size: int = Field(default=8, ge=2, le=1024)
    """Responses sampled for each problem; their rewards are normalised together."""

    optimizer_steps: int = Field(default=2, ge=1, le=64)
    """Optimizer steps in one training step: the batch is split into this many mini-batches of whole groups."""

    learning_rate: float = Field(default=1e-6, gt=0, le=1)
    """AdamW's learning rate, constant."""

    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """AdamW's decoupled weight decay."""

    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first-moment decay."""

    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's second-moment decay."""

    grad_clip: float = Field(default=1.0, gt=0)
    """Largest global gradient norm."""

    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """Lower clip of the probability ratio: 1 - clipLow."""

    clip_high: float = Field(default=0.28, ge=0)
    """Upper clip of the probability ratio: 1 + clipHigh."""

    temperature: float = Field(default=0.6, gt=0, le=2)
    """Sampling temperature of training rollouts; the learner divides its logits by the same number."""

    advantage: Advantage = Advantage.STD
    """Std: (reward - mean) / (unbiased std + 1e-6). MeanOnly: reward - mean."""

    overlong: Overlong = Overlong.ZERO_ADVANTAGE
    """ZeroAdvantage keeps the tokens in the denominator; DropFromMask takes them out of it; Off trains on them."""

    loss: Loss = Loss.CLIP
    """Clip: the clipped surrogate of PPO with separate bounds. Cispo: clipped ratio as a detached weight."""

    old_logprobs: OldLogprobs | None = None
    """Behaviour: the sampler's. Recompute: the learner's at the step's start. Default: Recompute when maxOffPolicy
    is 0, else Behaviour."""

    tis_cap: float = Field(default=2.0, gt=0)
    """Cap of the truncated importance weight: with oldLogprobs Recompute, of the recomputed log-probabilities against
    the sampler's; with Behaviour, of the ratio itself, which the clip leaves unbounded for negative advantages."""

    importance: Importance = Importance.TRUNCATED
    """Truncated: by the weight that tisCap truncates. Off (quoted in YAML): not at all, as published; the ratio alone
    is clipped."""

    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of an entropy bonus; 0 in the recipe."""

    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of a KL penalty to the starting model; 0 in the recipe, where no reference model is loaded."""

    max_off_policy: int = Field(default=1, ge=0, le=64)
    """Largest number of weight versions between the sampling of a group and its training. 0 is synchronous,
    1 with Strict is one-off pipelining."""

    order: Order = Order.STRICT
    """Strict: a step's groups are fixed. Window: those that finish first; maxOffPolicy then is at least 1."""

    refill: bool = False
    """Replace groups whose rewards are all equal by further groups. The recipe keeps them."""

    refill_limit: int = Field(default=3, ge=1, le=64)
    """How often one group is replaced before it is kept whatever its rewards; matters with refill alone."""

    deterministic: bool = False
    """Repeatable to the bit at equal world size; slower; needs Strict."""

    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Problems with a longer prompt are left out, and counted."""

    precision: Precision = Precision.BFLOAT16
    """Number format of forward and backward pass."""

    tokens_per_device: int | None = Field(default=None, ge=1)
    """Token budget of one micro-batch on one learner device. Default: one sequence of the longest possible length, and
    at least 8192."""

    activation_offload: bool = False
    """Keep what each decoder layer starts from in host memory between forward and backward pass: longer sequences a
    device, for some time on the bus. The result is the same to the bit."""

    sequence_parallel: int = Field(default=1, ge=1, le=8)
    """Learner devices that share one sequence (Ulysses)."""

    tensor_parallel: int = Field(default=1, ge=1, le=8)
    """Devices of one sampler's vLLM engine."""

    evaluation_temperature: float = Field(default=0.6, ge=0, le=2)
    """Sampling temperature of evaluations."""

    evaluation_top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus of evaluation sampling. Training never truncates: it would bias the ratio."""

    reward: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`module:function` of a reward of one's own, importable in the trainer image; default: the judge."""

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
            raise ValueError("deterministic needs order: Strict, since a window depends on completion order")
        if self.deterministic and self.refill:
            raise ValueError(
                "deterministic samples whole waves of groups, which refill would break up: set refill: false, or "
                "deterministic: false"
            )
        if self.prompts_per_step % self.optimizer_steps:
            raise ValueError(
                f"promptsPerStep {self.prompts_per_step} cannot be split into optimizerSteps {self.optimizer_steps} "
                "equal mini-batches: make promptsPerStep a multiple"
            )
        return self


class StageRecipe(Contract):
    """What one stage does otherwise than the run's recipe; what is left out is as there."""

    prompts_per_step: int | None = Field(default=None, ge=1, le=65536)
    """Problems in one training step of this stage."""

    group_size: int | None = Field(default=None, ge=2, le=1024)
    """Responses sampled for each problem."""

    optimizer_steps: int | None = Field(default=None, ge=1, le=64)
    """Optimizer steps in one training step; has to divide promptsPerStep."""

    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """AdamW's learning rate."""

    overlong: Overlong | None = None
    """What responses that fill the context teach, as in spec.recipe; Off is to be quoted in YAML."""

    tokens_per_device: int | None = Field(default=None, ge=1)
    """Token budget of one micro-batch on one learner device."""

    def over(self, recipe: Recipe) -> Recipe:
        """The stage's recipe. Raises nothing: whether the two fit together is `misfit`'s to say."""
        return recipe.model_copy(update={name: value for name, value in self if value is not None})

    def misfit(self, recipe: Recipe) -> str | None:
        """Why the stage's recipe cannot be; None if it can."""
        try:
            Recipe.model_validate(dict(self.over(recipe)))
        except ValidationError as error:
            return "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors(include_url=False))
        return None
