"""What a run would take, against figures that can be reckoned by hand from its file."""

from pathlib import Path
from typing import Any

import pytest

from deepcoder_client.errors import BadFile
from deepcoder_client.manifests import RunManifest, load, parse
from deepcoder_client.plan import Given, RunPlan, plan
from deepcoder_client.prices import Price
from deepcoder_contracts.model_shape import KNOWN

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LARGE = load(EXAMPLES / "deepcoder-14b.yaml")
DEMO = load(EXAMPLES / "demo.yaml")


def changed(manifest: RunManifest, stage: dict[str, Any] | None = None, index: int = 0, **recipe: Any) -> RunManifest:
    document = manifest.to_object("team")
    document["spec"]["stages"][index] |= stage or {}
    document["spec"]["recipe"] = document["spec"].get("recipe", {}) | recipe
    return parse(document)


def test_the_published_run_takes_32_gpus_and_costs_their_hours() -> None:
    made = plan(LARGE, Given(prices=[Price(per_gpu_hour=2.5)], step_seconds={"": 900.0, "32k": 1800.0}))
    assert made.gpus == 32
    assert made.fits
    assert [s.gpus for s in made.stages] == [32, 32, 32]
    first, second, _ = made.stages
    assert (first.engines, first.learners) == (8, 16)
    assert first.per_hour == 32 * 2.5
    assert first.cost == pytest.approx(180 * 900 / 3600 * 32 * 2.5)
    assert second.cost == pytest.approx(470 * 1800 / 3600 * 32 * 2.5)
    assert made.cost is None, "how long the evaluation takes is not known"
    assert made.parameters == pytest.approx(14.77e9, rel=0.01)
    assert made.checkpoint_gb == pytest.approx(14.77 * 12, rel=0.01), "weights and two moments in fp32"
    assert made.export_gb == pytest.approx(2 * 2.147, rel=0.001), "a weight file of 2 GiB, twice"


def test_a_price_that_matches_no_node_leaves_the_cost_open() -> None:
    made = plan(LARGE, Given(prices=[Price(per_gpu_hour=1, node_selector={"no": "such"})]))
    assert [s.per_hour for s in made.stages] == [None] * 3


def problems(made: RunPlan) -> str:
    return "\n".join(problem for stage in made.stages for problem in stage.problems)


@pytest.mark.parametrize(
    ("manifest", "given", "told"),
    [
        (LARGE, Given(gpu_gb=24), "a learner of stages[16k] needs"),
        (LARGE, Given(gpu_gb=10), "no engine of stages[16k] holds a response of"),
        (changed(LARGE, {"contextTokens": 1_000_000}, 1), Given(), "contextTokens is 1000000"),
        (changed(LARGE, tensorParallel=3), Given(), "tensorParallel is 3"),
        (changed(LARGE, sequenceParallel=3), Given(), "sequenceParallel is 3"),
    ],
)
def test_what_cannot_work_is_said_with_the_change(manifest: RunManifest, given: Given, told: str) -> None:
    made = plan(manifest, given)
    assert not made.fits
    assert told in problems(made)


def test_a_stage_with_a_recipe_of_its_own_is_reckoned_by_it() -> None:
    run = changed(LARGE, tokensPerDevice=40_000)
    own = changed(run, {"recipe": {"tokensPerDevice": 80_000}})
    assert (plan(own).stages[0].learner_gb or 0) > (plan(run).stages[0].learner_gb or 0)


def test_a_model_that_is_not_known_is_planned_without_memory_and_with_its_config_json_given() -> None:
    document = LARGE.to_object("team")
    document["spec"]["model"]["uri"] = "hf://some/other"
    unknown = plan(parse(document))
    assert [s.learner_gb for s in unknown.stages] == [None] * 3
    assert unknown.export_gb is None
    assert any("--model-config" in note for note in unknown.notes)
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 131072,
    }  # fmt: skip
    assert plan(parse(document), Given(), config).stages[0].learner_gb is not None


def test_the_cost_of_all_stages_is_their_sum_where_each_is_known() -> None:
    document = LARGE.to_object("team")
    del document["spec"]["stages"][2]
    given = Given(prices=[Price(per_gpu_hour=2.5)], step_seconds={"16k": 900.0, "32k": 1800.0})
    assert plan(parse(document), given).cost == pytest.approx((180 * 900 + 470 * 1800) / 3600 * 32 * 2.5)


def test_a_deadline_bounds_the_cost_of_a_stage() -> None:
    made = plan(changed(LARGE, {"activeDeadlineSeconds": 7200}), Given(prices=[Price(per_gpu_hour=2.5)]))
    assert made.stages[0].at_most == pytest.approx(2 * 32 * 2.5)
    assert made.stages[1].at_most is None


def test_each_group_of_pods_has_the_price_of_its_own_nodes() -> None:
    document = LARGE.to_object("team")
    resources = document["spec"]["stages"][0]["resources"]
    resources["learners"]["template"]["spec"]["nodeSelector"] = {"gpu": "cheap"}
    prices = [Price(per_gpu_hour=1, node_selector={"gpu": "cheap"}), Price(per_gpu_hour=4)]
    assert plan(parse(document), Given(prices=prices)).stages[0].per_hour == 16 * 1 + 16 * 4


def test_an_engine_holds_fewer_sequences_where_evaluations_are_longer_and_more_where_it_shares_no_gpu() -> None:
    def held(stage: dict[str, Any]) -> int:
        sequences = plan(changed(LARGE, stage)).stages[0].sequences
        assert sequences is not None
        return sequences

    evaluate = LARGE.to_object("team")["spec"]["stages"][0]["evaluate"]
    alone = held({})
    assert held({"evaluate": evaluate | {"contextTokens": 32768}}) < alone
    assert held({"evaluate": evaluate | {"contextTokens": 8192}}) == alone
    assert held({"placement": "Colocated"}) < alone


def test_an_evaluation_longer_than_the_model_reads_is_named_by_its_own_field() -> None:
    evaluate = LARGE.to_object("team")["spec"]["stages"][0]["evaluate"]
    told = problems(plan(changed(LARGE, {"evaluate": evaluate | {"contextTokens": 1_000_000}})))
    assert "stages[16k].evaluate.contextTokens is 1000000" in told


def test_a_stage_without_gpus_costs_nothing_and_leaves_the_total_known() -> None:
    document = LARGE.to_object("team")
    del document["spec"]["stages"][2]["resources"]
    made = plan(parse(document), Given(prices=[Price(per_gpu_hour=2.5)], step_seconds={"": 900.0}))
    assert (made.stages[2].gpus, made.stages[2].cost) == (0, None)
    assert made.cost == pytest.approx((180 + 470) * 900 / 3600 * 32 * 2.5)
    assert [stage.per_hour for stage in plan(DEMO).stages] == [None] * 3, "nor is it known without prices"


def test_a_model_that_cannot_be_trained_is_told() -> None:
    config = KNOWN[LARGE.spec.model.uri] | {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8}
    assert not plan(LARGE, Given(), config).fits


SAMPLERS = LARGE.to_object("team")["spec"]["stages"][0]["resources"]["samplers"]


def sampler_pods(**spec: Any) -> RunManifest:
    """Return the published run with other sampler pods in its first stage."""
    resources = LARGE.to_object("team")["spec"]["stages"][0]["resources"]
    return changed(LARGE, {"resources": resources | {"samplers": SAMPLERS | {"template": {"spec": spec}}}})


def devices(**limits: int) -> list[dict[str, Any]]:
    named = {f"nvidia.com/{name.replace('_', '-', 1).replace('_', '.')}": count for name, count in limits.items()}
    return [{"name": "ray-worker", "resources": {"limits": named}}]


def with_spec(**spec: Any) -> RunManifest:
    document = LARGE.to_object("team")
    document["spec"] |= spec
    return parse(document)


CURATED = {"curation": {"inputs": [{"name": "taco", "uri": "hf://datasets/BAAI/TACO"}]}}


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        (sampler_pods(containers=devices(gpu=7)), "samplers has 7 GPUs per pod, not a multiple of recipe.tensorPar"),
        (sampler_pods(containers=devices(mig_3g_40gb=2)), "MIG devices among them, of which a process sees only one"),
        (changed(LARGE, {"recipe": {"promptsPerStep": 65}}), "stages[16k].recipe: promptsPerStep 65 cannot be split"),
        (
            changed(LARGE, {"evaluate": {"datasets": [{"name": "lcb", "uri": "/e"}], "targets": ["24k"]}}, 2),
            "stages[eval-64k].evaluate.targets names 24k, which is not an earlier Train stage: use Base, 16k, 32k",
        ),
        (with_spec(dataset=CURATED), "which dataset.curation.against does not name"),
        (with_spec(checkpoint={"s3": {"bucket": "runs"}}), "checkpoint.s3.credentialsSecretRef is not set"),
    ],
    ids=["GPUs", "MIG", "recipe", "target", "unprotected", "credentials"],
)
def test_what_the_operator_would_not_accept_does_not_fit(manifest: RunManifest, told: str) -> None:
    made = plan(manifest)
    assert not made.fits
    assert told in "\n".join((*made.problems, problems(made)))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"containers": {"name": "ray-worker"}}, "template.spec.containers must be a list"),
        ([], "template.spec must be a map"),
        (
            {"containers": [{"name": "a", "resources": {"limits": [8]}}]},
            "template.spec.containers[a].resources.limits must be a map",
        ),
        ({"nodeSelector": ["gpu"]}, "template.spec.nodeSelector must be a map"),
    ],
)
def test_a_malformed_template_is_a_fault_of_the_file_and_named_by_its_path(spec: Any, told: str) -> None:
    resources = LARGE.to_object("team")["spec"]["stages"][0]["resources"]
    malformed = changed(LARGE, {"resources": resources | {"samplers": {"template": {"spec": spec}}}})
    with pytest.raises(BadFile) as error:
        plan(malformed, Given(prices=[Price(per_gpu_hour=1)]))
    assert f"deepcoder-14b: spec.stages[16k].resources.samplers.{told}" in str(error.value)


def test_a_template_that_the_operator_would_refuse_does_not_fit_and_is_told_in_its_words() -> None:
    resources = LARGE.to_object("team")["spec"]["stages"][0]["resources"]
    owned = changed(LARGE, {"resources": resources | {"head": {"template": {"spec": {"serviceAccountName": "admin"}}}}})
    host = {"template": {"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}}
    made = plan(owned), plan(with_spec(sandbox={"template": host}))
    assert [each.problems for each in made] == [
        (
            "spec.stages[16k].resources.head.template.spec.serviceAccountName is set by the operator: remove it from "
            "the template",
        ),
        ("spec.sandbox.template.template.spec.volumes[v].hostPath would let programs out of the sandbox: remove it",),
    ]
    assert not any(each.fits for each in made)


def test_a_spec_that_the_operator_would_not_read_does_not_fit() -> None:
    """Each template is within its bounds."""
    resources = LARGE.to_object("team")["spec"]["stages"][0]["resources"]
    template = {"metadata": {"x": [[{}] * 900] * 7}}
    filled = {role: {"template": template} for role in ("head", "samplers")}
    (told,) = plan(changed(LARGE, {"resources": resources | filled})).problems
    assert told == "spec holds more than 10000 values (fields and elements of lists): make its templates smaller"


def test_a_quantized_model_is_told_once_for_the_run() -> None:
    config = KNOWN[LARGE.spec.model.uri] | {"quantization_config": {"quant_method": "awq"}}
    made = plan(LARGE, Given(), config)
    (told,) = made.problems
    assert f"the model at {LARGE.spec.model.uri} is quantized" in told
    assert not made.fits
