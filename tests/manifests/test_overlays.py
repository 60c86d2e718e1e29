"""Every overlay as it stands: it builds, nothing is wrong with it, and what is shared is the same everywhere."""

from importlib.metadata import version

import pytest
from manifest_rig import NAMES, built

from extproc import cli
from tools.overlays import build as kustomize
from tools.overlays.checks import check, schemas
from tools.overlays.checks.serving import server_of
from tools.overlays.objects import envoy_patches

ROOT = kustomize.ROOT


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong_with_an_overlay(name: str) -> None:
    assert [str(f) for f in check(built(name))] == []


def test_base_dev_staging_and_both_clouds_are_there() -> None:
    assert {"base", "dev", "staging", "production-aws", "production-gke"} <= set(NAMES)
    assert NAMES[0] == "base"
    assert "components" not in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_gateway_runs_the_lua_filter_as_it_stands_in_the_file(name: str) -> None:
    codes = [
        v["typed_config"]["default_source_code"]
        for _, v in envoy_patches(built(name), "HTTP_FILTER")
        if v["name"] == "llm.usage"
    ]
    assert codes == [{"inline_string": (ROOT / "mesh" / "lua" / "usage.lua").read_text()}]


@pytest.mark.parametrize("name", NAMES)
def test_the_processor_takes_its_command_line(name: str) -> None:
    """argparse itself judges; a wrong flag ends the pod at its start."""
    processors = [c for w in built(name).workloads() for c in w.containers() if c["name"] == "processor"]
    assert processors
    for c in processors:
        words = [word.replace("$(GATEWAY_REPLICAS)", "2") for word in c["args"]]
        assert cli._parser("serve").parse_args(words).workers >= 1


@pytest.mark.parametrize("name", NAMES)
def test_our_image_is_of_this_version(name: str) -> None:
    images = {c["image"] for w in built(name).workloads() for c in w.containers() if "llm-mesh/llm-mesh" in c["image"]}
    assert images == {f"ghcr.io/llm-mesh/llm-mesh:{version('llm-mesh')}"}


@pytest.mark.parametrize("name", NAMES)
def test_simulated_models_take_their_command_lines(name: str) -> None:
    for w in built(name).models():
        server = server_of(w)
        assert server is not None
        if "sim" in server.get("args", []):
            assert cli._parser("sim").parse_args(server["args"]).port == 8000


def test_every_kind_is_judged_by_its_schema_where_the_definitions_are_at_hand() -> None:
    if not schemas.documents():
        pytest.skip("the resource definitions are not built; run `make tools`")
    unjudged = {kind for name in NAMES for kind in schemas.unjudged(built(name))}
    assert not {kind for kind in unjudged if not kind.endswith(("(karpenter.sh)", "(karpenter.k8s.aws)"))}, unjudged
