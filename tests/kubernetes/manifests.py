"""What deploy/kubernetes/ asks of a cluster, as kustomize assembles it, and what the pods are made from."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from tests import tools
from tests.running_app import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("machine", "cluster")
REFERENCE = re.compile(r"\$\((\w+)\)")
Document = dict[str, Any]


def documents(overlay: str) -> list[Document]:
    """All documents of one folder."""
    run = subprocess.run([tools.kustomize(), "build", str(FOLDER / overlay)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return list(yaml.safe_load_all(run.stdout))


def one(overlay: list[Document], kind: str, name: str = "onelane") -> Document:
    """The document of this kind and name; the name of a ConfigMap has a hash behind it."""
    (document,) = [
        document
        for document in overlay
        if document["kind"] == kind and re.fullmatch(f"{name}(-[0-9a-z]{{10}})?", document["metadata"]["name"])
    ]
    return document


@dataclass(frozen=True)
class PodTemplate:
    """What the pods of the StatefulSet are made from."""

    spec: Mapping[str, Any]
    files: Mapping[str, Mapping[str, str]]
    """Name of a volume → its files, by their names."""
    more_environment: Mapping[str, str] = field(default_factory=dict)
    """Set after that of the manifest, as `kubectl set env` does."""

    @property
    def container(self) -> Mapping[str, Any]:
        (container,) = self.spec["containers"]
        container_spec: Mapping[str, Any] = container
        return container_spec

    @property
    def grace_s(self) -> float:
        return float(self.spec["terminationGracePeriodSeconds"])

    @property
    def prestop(self) -> list[str]:
        command: list[str] = self.container["lifecycle"]["preStop"]["exec"]["command"]
        return command

    def port(self, wanted: int | str) -> int:
        """The number of a port of the container, which may be given by name."""
        if isinstance(wanted, int):
            return wanted
        (number,) = [port["containerPort"] for port in self.container["ports"] if port["name"] == wanted]
        return int(number)

    def environment(self, fields: Mapping[str, str], secrets: Mapping[tuple[str, str], str]) -> dict[str, str]:
        """The variables of the container, in their order: each may use those above it. fields: of the pod, by their
        paths. secrets: name and key of a secret → its value."""
        variables: dict[str, str] = {}
        for row in self.container["env"]:
            if "value" in row:
                variables[row["name"]] = expanded(row["value"], variables)
            elif "fieldRef" in row["valueFrom"]:
                variables[row["name"]] = fields[row["valueFrom"]["fieldRef"]["fieldPath"]]
            else:
                reference = row["valueFrom"]["secretKeyRef"]
                variables[row["name"]] = secrets[reference["name"], reference["key"]]
        return variables | dict(self.more_environment)

    def altered(self, **environment: str) -> "PodTemplate":
        return replace(self, more_environment=dict(self.more_environment) | environment)

    def with_container(self, **fields: Any) -> "PodTemplate":
        """Another one, fields of whose container are replaced."""
        return replace(self, spec={**self.spec, "containers": [{**self.container, **fields}]})

    def with_grace(self, seconds: int) -> "PodTemplate":
        return replace(self, spec={**self.spec, "terminationGracePeriodSeconds": seconds})

    def with_prestop(self, *command: str) -> "PodTemplate":
        return self.with_container(lifecycle={"preStop": {"exec": {"command": list(command)}}})

    def unhurried(self, times: int) -> "PodTemplate":
        """Another one, whose preStop and grace period may take so much longer, and whose start may fail so much more
        often: a starved machine takes longer than any that somebody pays for. In the environment `drain_s` is to be
        raised alike, by which keys have to move."""
        leave = re.compile(r"(--within) ([\d.]+)")
        prestop = [leave.sub(lambda match: f"{match[1]} {float(match[2]) * times:g}", word) for word in self.prestop]
        assert prestop != self.prestop
        startup = self.container["startupProbe"]
        probe = {**startup, "failureThreshold": startup["failureThreshold"] * times}
        return self.with_prestop(*prestop).with_grace(int(self.grace_s * times)).with_container(startupProbe=probe)

    def without(self, prefix: str) -> "PodTemplate":
        """Another one, without the variables whose names begin so."""
        return self.with_container(env=[row for row in self.container["env"] if not row["name"].startswith(prefix)])

    def with_files(self, volume: str, files: Mapping[str, str]) -> "PodTemplate":
        return replace(self, files={**self.files, volume: files})

    def without_volume(self, volume: str) -> "PodTemplate":
        return self.with_container(
            volumeMounts=[mount for mount in self.container["volumeMounts"] if mount["name"] != volume]
        )


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` by the variable; where there is none it stays as it is, which is never what was meant."""
    return REFERENCE.sub(lambda match: variables.get(match[1], match[0]), text)


def pod_template(overlay: list[Document]) -> PodTemplate:
    spec = one(overlay, "StatefulSet")["spec"]["template"]["spec"]
    maps = {row["metadata"]["name"]: row["data"] for row in overlay if row["kind"] == "ConfigMap"}
    volumes = {row["name"]: maps[row["configMap"]["name"]] for row in spec["volumes"] if "configMap" in row}
    return PodTemplate(spec, volumes)
