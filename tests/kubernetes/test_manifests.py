"""deploy/kubernetes/ is what a cluster takes, its parts name each other, and its seconds follow from onelane's own."""

import ipaddress
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from onelane.cli.main import main
from onelane.config import Config, load
from onelane.core import addresses
from onelane.core.cluster_settings import ClusterSettings
from onelane.supervisor.admin.auth import PUBLIC_PATHS
from onelane.supervisor.durations import longest_leave_s, longest_start_s, longest_stop_s

from tests import tools
from tests.kubernetes.manifests import FOLDER, OVERLAYS, REFERENCE, Document, PodTemplate, documents, one, pod_template
from tests.kubernetes.pods import SECRETS
from tests.running_app import ROOT

COMMAND_S = 2
"""What the command of preStop may take beside what it waits for: its process starts in a busy pod."""
SPARE_S = 5
"""By how much the grace period may be longer than the sum: a node that is drained waits for it."""
FIELDS = {"status.podIP": "10.1.2.3", "metadata.name": "onelane-0"}
IN_CLUSTER = "cluster" in {setting.name for setting in fields(Config)}


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Document]:
    name: str = request.param
    return documents(name)


@pytest.fixture
def template(overlay: list[Document]) -> PodTemplate:
    return pod_template(overlay)


@pytest.fixture
def configuration(template: PodTemplate, tmp_path: Path) -> Config:
    """As the pod reads it."""
    used = template if IN_CLUSTER else template.without("ONELANE_CLUSTER__")
    file = tmp_path / "onelane.toml"
    file.write_text(template.files["settings"]["onelane.toml"])
    (tmp_path / "password").write_text("swordfish")
    variables = used.environment(FIELDS, SECRETS)
    return load(file, {name: text.replace("/etc/onelane-etcd", str(tmp_path)) for name, text in variables.items()})


def test_a_cluster_takes_each_document(overlay: list[Document]) -> None:
    tools.module("kubernetes_validate", "it is installed with the extra dev")
    import kubernetes_validate

    version = kubernetes_validate.latest_version()
    for document in overlay:
        kubernetes_validate.validate(document, version, strict=True)
    kinds = ["ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "Service", "Service", "StatefulSet"]
    assert sorted(document["kind"] for document in overlay) == kinds


def test_every_file_of_the_folder_is_a_part_of_it() -> None:
    named = {"kustomization.yaml", "onelane.toml"}
    for name in OVERLAYS:
        kustomization = yaml.safe_load((FOLDER / name / "kustomization.yaml").read_text())
        named |= {path for path in kustomization["resources"] if not path.startswith("../")}
        named |= {patch["path"] for patch in kustomization.get("patches", ()) if "path" in patch}
    assert {path.name for path in FOLDER.rglob("*") if path.is_file()} == named


def test_services_budget_policy_and_spread_select_the_pods(overlay: list[Document]) -> None:
    labels = one(overlay, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    spec = one(overlay, "StatefulSet")["spec"]
    selectors = [
        spec["selector"]["matchLabels"],
        one(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ]
    selectors += [one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]]
    selectors += [one(overlay, "Service", name)["spec"]["selector"] for name in ("onelane", "onelane-pods")]
    spread = spec["template"]["spec"]["topologySpreadConstraints"]
    selectors += [constraint["labelSelector"]["matchLabels"] for constraint in spread]
    assert selectors == [labels] * 6
    headless = one(overlay, "Service", spec["serviceName"])["spec"]
    assert headless["clusterIP"] == "None"


def test_files_of_secrets_are_read_by_the_group_of_the_pod_and_by_nobody_else(overlay: list[Document]) -> None:
    spec = one(overlay, "StatefulSet")["spec"]["template"]["spec"]
    secrets = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
    assert {secret["defaultMode"] for secret in secrets} <= {0o440}
    assert not secrets or spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"]


def test_services_and_probes_name_ports_at_which_something_listens(
    overlay: list[Document], template: PodTemplate, configuration: Config
) -> None:
    (app,) = configuration.apps.values()
    listens, admin = addresses.split(app.listen)[1], addresses.split(configuration.admin)[1]
    for name in ("onelane", "onelane-pods"):
        (port,) = one(overlay, "Service", name)["spec"]["ports"]
        assert (template.port(port["targetPort"]), port["port"]) == (listens, listens)
    container = template.container
    assert [container[probe]["grpc"] for probe in ("startupProbe", "readinessProbe")] == [{"port": listens}] * 2
    assert app.tls is None, "kubelet's probes by gRPC are in clear"
    assert app.health
    get = container["livenessProbe"]["httpGet"]
    assert (template.port(get["port"]), get["path"] in PUBLIC_PATHS) == (admin, True)


def test_the_policy_opens_what_clients_need_and_the_admin_port_to_monitoring_alone(
    overlay: list[Document], configuration: Config
) -> None:
    (app,) = configuration.apps.values()
    clients, monitoring, *links = one(overlay, "NetworkPolicy")["spec"]["ingress"]
    opened = [range(row["port"], row.get("endPort", row["port"]) + 1) for row in clients["ports"]]
    needed = [addresses.split(app.listen)[1], *map(app.own_port_of, range(app.shard_count))]
    assert [port for port in needed if not any(port in ports for ports in opened)] == []
    admin = addresses.split(configuration.admin)[1]
    assert ([row["port"] for row in monitoring["ports"]], any(admin in ports for ports in opened)) == ([admin], False)
    labels = one(overlay, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert links in ([], [{"from": [{"podSelector": {"matchLabels": labels}}]}])


def test_the_pods_settings_are_good_and_its_own_addresses_are_in_them(
    template: PodTemplate, configuration: Config
) -> None:
    configuration.check_addresses()
    (app,) = configuration.apps.values()
    assert app.advertise == FIELDS["status.podIP"]
    assert configuration.admin_token == SECRETS["onelane-admin", "token"]
    hosts = [addresses.split(address)[0] for address in (app.listen, configuration.admin)]
    assert all(ipaddress.ip_address(host).is_unspecified for host in hosts), "kubelet and port-forward come by two ways"
    assert str(app.shard_count) == template.container["resources"]["requests"]["cpu"]


def test_each_variable_uses_only_those_above_it(template: PodTemplate) -> None:
    variables = template.environment(FIELDS, SECRETS)
    assert {name: text for name, text in variables.items() if REFERENCE.search(text)} == {}


def test_the_grace_period_is_what_prestop_and_a_stop_may_take(template: PodTemplate, configuration: Config) -> None:
    in_cluster = any(row["name"].startswith("ONELANE_CLUSTER__") for row in template.container["env"])
    needed_s = prestop_s(template) + longest_stop_s(configuration, in_cluster=in_cluster)
    assert needed_s <= template.grace_s <= needed_s + SPARE_S


def prestop_s(template: PodTemplate) -> float:
    """The longest that preStop may take, by its commands."""
    shell, option, script = template.prestop
    assert (shell, option) == ("sh", "-c")
    sleep, leave, wait = [shlex.split(command) for command in script.replace("&", ";").split(";")]
    assert (sleep[0], leave[:2], wait) == ("sleep", ["onelane", "leave"], ["wait"])
    within_s = float(main.commands["leave"].make_context("leave", leave[2:]).params["within"])
    return max(float(sleep[1]), within_s + COMMAND_S)


def test_prestop_waits_for_all_that_can_move(template: PodTemplate, configuration: Config) -> None:
    assert prestop_s(template) - COMMAND_S == longest_leave_s(configuration)


def test_kubelet_waits_for_a_start_as_long_as_the_supervisor_does(template: PodTemplate, configuration: Config) -> None:
    probe = template.container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == longest_start_s(configuration)


def test_the_command_names_a_file_that_is_mounted_and_a_folder_of_the_image(template: PodTemplate) -> None:
    program, command, file, option, folder = template.container["command"]
    assert (program, command, option) == ("onelane", "up", "--app-dir")
    mounts = {mount["mountPath"]: mount["name"] for mount in template.container["volumeMounts"]}
    place, _, name = file.rpartition("/")
    assert name in template.files[mounts[place]]
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert (f"WORKDIR {folder}\nCOPY services services\n") in dockerfile


def test_every_volume_that_is_mounted_is_there_and_no_other(template: PodTemplate) -> None:
    mounted = [mount["name"] for mount in template.container["volumeMounts"]]
    assert sorted(mounted) == sorted(volume["name"] for volume in template.spec["volumes"])


def test_the_settings_of_the_cluster_are_settings() -> None:
    variables = pod_template(documents("cluster")).environment(FIELDS, SECRETS)
    prefix = "ONELANE_CLUSTER__"
    places = [name.removeprefix(prefix).lower().split("__") for name in variables if name.startswith(prefix)]
    hints: dict[str, Any] = get_type_hints(ClusterSettings)
    assert [place for place in places if place[0] not in hints] == []
    assert {place[0] for place in places} >= {"name", "etcd", "advertise", "tls"}
