"""Components in the combinations that their READMEs speak of: each builds, and nothing is wrong with it."""

import os
from pathlib import Path

import pytest

from tools.overlays import build as kustomize
from tools.overlays.build import OVERLAYS, BuildError
from tools.overlays.checks import check
from tools.overlays.checks.references import expected_secrets
from tools.overlays.download import DownloadError, jobs_of
from tools.overlays.objects import Build, at

COMPONENTS = sorted(path.parent for path in (OVERLAYS / "components").glob("*/kustomization.yaml"))
COMBINATIONS = [
    ("base", "admission"),
    ("base", "cert-manager"),
    ("base", "jwt"),
    ("base", "redis-external"),
    ("base", "model-download"),
    ("base", "canary"),
    ("base", "canary", "simulator"),
    ("base", "canary", "gpu-aws", "spot", "autoscaling", "scale-to-zero", "cluster-autoscaler"),
    ("base", "canary", "gpu-gke", "spot", "autoscaling", "redis-external", "cert-manager", "admission"),
    ("base", "simulator", "autoscaling", "redis-external"),
    ("base", "observability"),
    ("base", "observability", "redis-external", "model-download"),
    ("base", "canary", "simulator", "observability"),
    ("base", "canary", "gpu-aws", "spot", "autoscaling", "redis-external", "observability"),
]


def combined(directory: Path, overlay: str, *components: str) -> Build:
    paths = [os.path.relpath(OVERLAYS / "components" / name, directory.resolve()) for name in components]
    lines = [
        f"resources: [{os.path.relpath(OVERLAYS / overlay, directory.resolve())}]",
        f"components: [{', '.join(paths)}]",
    ]
    (directory / "kustomization.yaml").write_text("\n".join(lines))
    return kustomize.build(directory)


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_nothing_is_wrong_with_a_combination(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert [str(f) for f in check(combined(tmp_path, *names))] == []


def test_every_component_stands_in_a_combination() -> None:
    assert {name for names in COMBINATIONS for name in names[1:]} == {path.name for path in COMPONENTS}


@pytest.mark.parametrize("directory", COMPONENTS, ids=lambda path: path.name)
def test_a_component_says_what_it_is_for(directory: Path) -> None:
    assert (directory / "README.md").read_text().startswith(f"# {directory.name}\n")


@pytest.mark.parametrize(
    ("names", "added"), [(("base", "redis-external"), "redis-url"), (("base", "model-download"), "hf-token")]
)
def test_a_component_declares_the_secret_that_it_needs(tmp_path: Path, names: tuple[str, ...], added: str) -> None:
    assert expected_secrets(combined(tmp_path, *names)) == ["llm-gateway-tls", added]


@pytest.mark.parametrize("name", ["base", "staging", "production-aws", "production-gke"])
def test_downloads_fetch_what_the_servers_of_an_overlay_serve_into_the_volume_that_they_read(name: str) -> None:
    overlay = kustomize.build(kustomize.find(name))
    jobs = jobs_of(kustomize.find(name))
    fetched = {e["value"] for w in jobs.workloads() for e in w.pod["containers"][0]["env"] if e["name"] == "MODEL"}
    assert fetched == {next(iter(w.pod["containers"]))["args"][0] for w in overlay.models()}
    claims = {at(v, "persistentVolumeClaim", "claimName") for w in jobs.workloads() for v in w.pod["volumes"]}
    assert claims - {None} == {"model-cache"}
    assert jobs.named("PersistentVolumeClaim", "model-cache") == overlay.named("PersistentVolumeClaim", "model-cache")


def test_downloads_bring_nothing_that_they_do_not_name() -> None:
    kinds = {o["kind"] for o in jobs_of(kustomize.find("production-aws")).objects}
    assert kinds == {"Namespace", "ServiceAccount", "PriorityClass", "PersistentVolumeClaim", "Job"}


def test_simulated_models_have_nothing_to_download() -> None:
    with pytest.raises(DownloadError, match="dev has no volume for models: they are simulated"):
        jobs_of(kustomize.find("dev"))


def test_what_the_download_can_not_build_is_said_with_the_name_of_the_overlay(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    with pytest.raises(BuildError, match=r"nowhere\.yaml"):
        jobs_of(tmp_path / "broken")
