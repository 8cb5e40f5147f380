"""One stage of a run, and the pods of an attempt at it."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from deepcoder_contracts.api.base import VALIDATIONS, PodTemplate, Rule, Spec, validations
from deepcoder_contracts.base import DNSLabel
from deepcoder_contracts.gate import PromoteWhen
from deepcoder_contracts.recipe import StageRecipe
from deepcoder_contracts.rope import RopeScaling
from deepcoder_contracts.stage import Evaluation, OptimizerState, Placement, StageType
from deepcoder_contracts.stage_rules import MEASURED_ONCE, TARGETS_OF_TRAIN, UNMEASURED


class Head(Spec):
    """The Ray head pod. It runs the controller and does no GPU work."""

    template: PodTemplate = {}
    """PodTemplateSpec, applied to the operator's own as a strategic merge patch. The container is named `ray-head`."""


class WorkerGroup(Spec):
    """Identical pods of one role."""

    replicas: int = Field(default=1, ge=1, le=1024)
    """Number of pods. A sampler pod runs one engine per recipe.tensorParallel GPUs, a learner pod one rank per GPU. A
    pod without GPUs runs one."""

    template: PodTemplate = {}
    """PodTemplateSpec, applied to the operator's own as a strategic merge patch. The container is named `ray-worker`.
    Set GPUs, node selectors, tolerations, RDMA, volumes and caches here."""


class Resources(Spec):
    """Pods of an attempt at this stage."""

    head: Head = Head()
    """The Ray head pod."""

    samplers: WorkerGroup | None = None
    """Pods that run vLLM engines. Default: one pod. Must not be set with placement Colocated."""

    learners: WorkerGroup | None = None
    """Pods that run learner ranks. Default: one pod in a Train stage. Must not be set in an Evaluate stage."""


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
                    UNMEASURED,
                    field_path=".promoteWhen",
                ),
                Rule(
                    "self.type != 'Evaluate' || !has(self.promoteWhen) || "
                    "self.promoteWhen.all.all(c, c.metric.startsWith('eval/') && c.window == 1)",
                    MEASURED_ONCE,
                    field_path=".promoteWhen",
                ),
                Rule(
                    "!has(self.evaluate) || !has(self.evaluate.targets) || self.type == 'Evaluate'",
                    TARGETS_OF_TRAIN,
                    field_path=".evaluate",
                ),
            )
        }
    )

    name: DNSLabel
    """Name of the stage, unique in the run. The stage's checkpoints are in a folder of this name."""

    type: StageType = StageType.TRAIN
    """Kind of stage. Train: update weights. Evaluate: measure checkpoints, at a context length of its own."""

    context_tokens: int = Field(ge=1, le=1_048_576)
    """Longest response, in tokens, not counting the prompt. It must not decrease from one Train stage to the next."""

    rope: RopeScaling | None = None
    """Scaling of rotary positions beyond the length that the model was trained for. It applies to all sampling and
    training of this stage. Default: none."""

    max_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Number of training steps. Required in a Train stage."""

    recipe: StageRecipe | None = None
    """Settings of this stage that override spec.recipe: its batch, learning rate, overlong rule or token budget."""

    resources: Resources = Resources()
    """Pods of an attempt at this stage. Each stage gets a cluster of its own size."""

    placement: Placement = Placement.SEPARATE
    """Where samplers and learners run. Separate: on their own devices. Colocated: in turns on the learners' devices."""

    optimizer: OptimizerState = OptimizerState.CARRY
    """Optimizer state at the start of the stage. Carry: continue from the previous stage. Reset: start afresh."""

    evaluate: Evaluation | None = None
    """Evaluations during a Train stage, or what an Evaluate stage measures."""

    promote_when: PromoteWhen | None = None
    """Gate that ends the stage before maxSteps, and what happens if it is not met by then."""

    hold: bool = False
    """Whether the run waits after this stage until approvedStages contains its name."""

    active_deadline_seconds: int | None = Field(default=None, ge=1, le=31_536_000)
    """Longest total running time of the stage's attempts, in seconds. When it is exceeded, the run fails. Time in a
    queue, between attempts, or while the run is suspended does not count. Default: no limit."""

    pre_running_deadline_seconds: int = Field(default=3600, ge=10, le=31_536_000)
    """Longest time, in seconds, until an attempt's RayJob is created, and again from the grant of its quota until it
    runs. When it is exceeded, the attempt fails. KubeRay bounds an attempt by the value that it was created with, plus
    2 minutes: a longer value takes full effect in the next attempt."""

    stall_seconds: int = Field(default=1800, ge=10, le=31_536_000)
    """Longest time, in seconds, without a finished step, or without a heartbeat while the attempt is not training. When
    it is exceeded, the attempt counts as stalled. The trainer bounds its own waits by the value that its attempt was
    created with: a longer value takes full effect in the next attempt."""
