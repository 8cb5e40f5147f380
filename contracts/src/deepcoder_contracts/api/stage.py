"""One stage of a run, and the pods an attempt at it has."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from deepcoder_contracts.api.base import VALIDATIONS, PodTemplate, Rule, Spec, validations
from deepcoder_contracts.base import DNSLabel
from deepcoder_contracts.gate import PromoteWhen
from deepcoder_contracts.recipe import StageRecipe
from deepcoder_contracts.rope import RopeScaling
from deepcoder_contracts.stage import Evaluation, OptimizerState, Placement, StageType


class Head(Spec):
    """The Ray head, which runs the controller and no GPU work."""

    template: PodTemplate = {}
    """PodTemplateSpec merged strategically over the operator's; the container is named `ray-head`."""


class WorkerGroup(Spec):
    """Equal pods of one role."""

    replicas: int = Field(default=1, ge=1, le=1024)
    """Pods. Each holds as many engines or ranks as its GPUs allow: GPUs / recipe.tensorParallel engines, or one rank
    a GPU; without GPUs one."""

    template: PodTemplate = {}
    """PodTemplateSpec merged strategically over the operator's; the container is named `ray-worker`. GPUs, node
    selectors, tolerations, RDMA, volumes and caches go here."""


class Resources(Spec):
    """Pods of an attempt at this stage."""

    head: Head = Head()
    """The Ray head."""

    samplers: WorkerGroup | None = None
    """Pods with vLLM engines. Default: one. Not with placement Colocated."""

    learners: WorkerGroup | None = None
    """Pods with learner ranks. Default: one in a Train stage. Not in an Evaluate stage."""


class Stage(Spec):
    """One stage: training at one context length, or an evaluation."""

    model_config = ConfigDict(
        json_schema_extra={
            VALIDATIONS: validations(
                Rule(
                    "self.type != 'Train' || has(self.maxSteps)",
                    "a Train stage needs maxSteps: set the number of training steps",
                    "FieldValueRequired",
                    ".maxSteps",
                ),
                Rule(
                    "self.type != 'Evaluate' || has(self.evaluate)",
                    "an Evaluate stage needs evaluate: name the datasets in evaluate.datasets",
                    "FieldValueRequired",
                    ".evaluate",
                ),
                Rule(
                    "self.type != 'Evaluate' || !has(self.resources) || !has(self.resources.learners)",
                    "an Evaluate stage has no learners: remove resources.learners",
                    field_path=".resources",
                ),
                Rule(
                    "self.placement != 'Colocated' || !has(self.resources) || !has(self.resources.samplers)",
                    "placement Colocated takes its pods from resources.learners: remove resources.samplers, or set "
                    "placement: Separate",
                    field_path=".resources",
                ),
                Rule(
                    "self.type != 'Evaluate' || self.placement == 'Separate'",
                    "an Evaluate stage has nothing to colocate with: remove placement",
                    field_path=".placement",
                ),
                Rule(
                    "self.type != 'Evaluate' || !has(self.recipe)",
                    "an Evaluate stage trains nothing: remove recipe; how it samples is in spec.recipe",
                    field_path=".recipe",
                ),
                Rule(
                    "!has(self.promoteWhen) || self.promoteWhen.all.all(c, !c.metric.startsWith('eval/') || "
                    "(has(self.evaluate) && self.evaluate.datasets.exists(d, "
                    "c.metric == 'eval/' + d.name + '/pass_at_1' || "
                    "(has(d.contests) && c.metric == 'eval/' + d.name + '/rating'))))",
                    "promoteWhen uses an evaluation that the stage does not make: add the dataset to "
                    "evaluate.datasets (with its contests, for a rating), or use another metric",
                    field_path=".promoteWhen",
                ),
                Rule(
                    "self.type != 'Evaluate' || !has(self.promoteWhen) || "
                    "self.promoteWhen.all.all(c, c.metric.startsWith('eval/') && c.window == 1)",
                    "an Evaluate stage measures once: gate it on eval/<dataset>/pass_at_1 or rating with window 1",
                    field_path=".promoteWhen",
                ),
                Rule(
                    "!has(self.evaluate) || !has(self.evaluate.targets) || self.type == 'Evaluate'",
                    "evaluate.targets is for Evaluate stages; a Train stage evaluates its own weights: remove it",
                    field_path=".evaluate",
                ),
            )
        }
    )

    name: DNSLabel
    """Unique in the run; a folder of this name holds the stage's checkpoints."""

    type: StageType = StageType.TRAIN
    """Train updates weights; Evaluate measures checkpoints at a length of its own."""

    context_tokens: int = Field(ge=1, le=1_048_576)
    """Longest response in tokens; the prompt comes on top. May not fall from one Train stage to the next."""

    rope: RopeScaling | None = None
    """Rotary positions past the length that the model was trained for, in all that this stage samples and trains."""

    max_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Train: steps of this stage."""

    recipe: StageRecipe | None = None
    """What this stage does otherwise than spec.recipe: its batch, learning rate, overlong rule or token budget."""

    resources: Resources = Resources()
    """Pods of an attempt at this stage; each stage gets a cluster of its own size."""

    placement: Placement = Placement.SEPARATE
    """Separate: samplers and learners have devices of their own. Colocated: they take turns on the learners'."""

    optimizer: OptimizerState = OptimizerState.CARRY
    """Carry takes the optimizer's state over from the stage before; Reset starts it anew."""

    evaluate: Evaluation | None = None
    """Evaluation within a Train stage, or what an Evaluate stage measures."""

    promote_when: PromoteWhen | None = None
    """Gate that ends the stage before maxSteps, and what follows if it is not met by then."""

    hold: bool = False
    """Wait after this stage until its name is in approvedStages."""

    active_deadline_seconds: int | None = Field(default=None, ge=1, le=31_536_000)
    """Longest time that attempts of the stage may run in all, in seconds; then the run fails. Time in a queue, between
    attempts and while the run is suspended does not count."""

    pre_running_deadline_seconds: int = Field(default=3600, ge=10, le=31_536_000)
    """Longest time for an attempt's RayJob to be made, and from the grant of quota until it runs, in seconds; then the
    attempt fails."""

    stall_seconds: int = Field(default=1800, ge=10, le=31_536_000)
    """Longest time without a finished step, or outside of training without a heartbeat, in seconds; then the attempt
    counts as stalled."""
