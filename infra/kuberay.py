"""A run as objects of Kubernetes: a RayJob with its cluster, and what starts it at given times.

Takes plain values and returns plain dicts: nothing is sent anywhere, the same values give the same objects.
The forms are those of KubeRay 1.5 or newer (ray.io/v1; RayCronJob is alpha and needs 1.6) and batch/v1.

A CronJob cannot make a RayJob itself. Its container does, through the API of the cluster, and waits until the
RayJob has ended: so "Forbid" means the whole run, and the Job's state is that of the run.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.cluster import OBJECTS_MB

Object = dict[str, Any]

RAY_VERSION = "2.60.0"                       # as constraints.txt pins it: the image's and the cluster's
USER = 10001                                 # of infra/Dockerfile
WORKFLOW_FOLDER = "/etc/pv3d"                # the workflow, and what travels with it
TEMPLATE_FOLDER = "/etc/pv3d-job"
TEMPLATE_KEY = "rayjob.json"
_PATIENCE_S = 1800                           # of the Job beyond the deadline of its RayJob
_NO_RIGHTS: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@dataclass(frozen=True)
class Node:
    """The size of a pod and where it may run."""

    cpus: int
    memory: str
    gpus: int = 0
    disk: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Group:
    """Workers of one kind."""

    name: str
    node: Node
    min: int
    max: int
    custom: Mapping[str, int] = field(default_factory=dict)
    image: str | None = None

    @property
    def resources(self) -> dict[str, float]:
        """What one worker has, in Ray's names."""
        return {"CPU": self.node.cpus, "GPU": self.node.gpus, **self.custom}


@dataclass(frozen=True)
class Volume:
    """A claim or a Secret as a folder."""

    path: str
    claim: str | None = None
    secret: str | None = None
    read_only: bool = False


@dataclass(frozen=True)
class Deployment:
    """Everything that the objects depend on."""

    name: str
    namespace: str
    image: str
    command: Sequence[str]                   # runs in the folder of `files`
    files: Mapping[str, str]                 # relative path -> text
    head: Node
    groups: Sequence[Group]
    cron: str | None = None
    timezone: str = "Etc/UTC"
    start_within_s: int = 3600
    deadline_s: int | None = None
    retries: int = 1
    keep_s: int = 300
    idle_s: int = 120
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[str] = ()
    pull_secrets: Sequence[str] = ()
    volumes: Sequence[Volume] = ()
    service_account: str | None = None
    objects_mb: int = OBJECTS_MB             # Ray would take a third of the memory


def render(d: Deployment, alpha: bool = False) -> list[Object]:
    """The objects, in the order in which they are applied; with `alpha` a RayCronJob for a CronJob."""
    objects = [_config(d, f"{d.name}-workflow", _keys(d.files))]
    if d.cron is None:
        return [*objects, ray_job(d)]
    if alpha:
        return [*objects, _ray_cron_job(d)]
    template = json.dumps(ray_job(d), indent=1, sort_keys=True)
    return [*objects, _config(d, f"{d.name}-rayjob", {TEMPLATE_KEY: template}), *_rights(d), _cron_job(d)]


def ray_job(d: Deployment) -> Object:
    """The RayJob: a cluster for one run."""
    meta = _metadata(d, d.name)
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": meta, "spec": _job_spec(d)}


def _job_spec(d: Deployment) -> Object:
    deadline = {"activeDeadlineSeconds": d.deadline_s} if d.deadline_s else {}
    return {
        "entrypoint": f"cd {WORKFLOW_FOLDER} && exec {shlex.join(d.command)}",
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": _submitter(d),
        "backoffLimit": d.retries,
        **deadline,
        "preRunningDeadlineSeconds": d.start_within_s,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": d.keep_s,
        "rayClusterSpec": {
            "rayVersion": RAY_VERSION,
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {
                "version": "v2", "upscalingMode": "Default", "idleTimeoutSeconds": d.idle_s,
                "securityContext": _NO_RIGHTS,
            },
            "headGroupSpec": {
                # Work goes to workers: what starves the head ends the run.
                "rayStartParams": {"num-cpus": "0", "num-gpus": "0", **_objects(d)},
                "template": _pod(d, "ray-head", d.head, d.image, _of_driver(d)),
            },
            "workerGroupSpecs": [_worker_group(d, group) for group in d.groups],
        },
    }  # fmt: skip


def _worker_group(d: Deployment, group: Group) -> Object:
    custom = dict(sorted(group.custom.items()))
    # KubeRay pastes it into a shell command, hence quoted twice.
    start = {"resources": json.dumps(json.dumps(custom))} if custom else {}
    start |= _objects(d)
    return {
        "groupName": group.name,
        "replicas": group.min,
        "minReplicas": group.min,
        "maxReplicas": group.max,
        "rayStartParams": start,
        "template": _pod(d, "ray-worker", group.node, group.image or d.image, {}),
    }


def _objects(d: Deployment) -> dict[str, str]:
    return {"object-store-memory": str(d.objects_mb << 20)}


def capacity(groups: Sequence[Group]) -> dict[str, float]:
    """What the workers have together when all have been added."""
    most: dict[str, float] = {}
    for group in groups:
        for name, amount in group.resources.items():
            most[name] = most.get(name, 0.0) + amount * group.max
    return {name: most[name] for name in sorted(most)}


def _of_driver(d: Deployment) -> dict[str, str]:
    """Workers are added when they are asked for, so the driver is told how many there may be."""
    return {
        "PV3D_CLUSTER_MAX": json.dumps(capacity(d.groups)),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(d.start_within_s),
    }


def _pod(d: Deployment, container: str, node: Node, image: str, env: Mapping[str, str]) -> Object:
    env = {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_process_group_cleanup_enabled": "true", **env, **d.env,
    }  # fmt: skip
    amounts = {"cpu": str(node.cpus), "memory": node.memory}
    amounts |= {"ephemeral-storage": node.disk} if node.disk else {}
    amounts |= {"nvidia.com/gpu": str(node.gpus)} if node.gpus else {}
    mounts, volumes = _volumes(d)
    head = container == "ray-head"
    body: Object = {
        "name": container,
        "image": image,
        "env": [{"name": name, "value": env[name]} for name in sorted(env)],
        "envFrom": [{"secretRef": {"name": name}} for name in d.secrets],
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "securityContext": _NO_RIGHTS,
        "volumeMounts": mounts,
    }
    if head:
        ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
        body["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    spec: Object = {
        **_pod_basics(d),
        "containers": [body],
        "terminationGracePeriodSeconds": 60,
        "volumes": volumes,
    }
    if not head:
        spec["automountServiceAccountToken"] = False  # only the autoscaler, in the head, asks the cluster
    if d.service_account:
        spec["serviceAccountName"] = d.service_account
    if node.node_selector:
        spec["nodeSelector"] = dict(node.node_selector)
    if node.tolerations:
        spec["tolerations"] = [
            {"operator": "Equal" if "value" in one else "Exists", **one} for one in node.tolerations
        ]
    return {"metadata": {"labels": _labels(d)}, "spec": spec}


def _pod_basics(d: Deployment) -> Object:
    basics: Object = {
        "restartPolicy": "Never",            # the autoscaler replaces pods
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        },
    }  # fmt: skip
    if d.pull_secrets:
        basics["imagePullSecrets"] = [{"name": name} for name in d.pull_secrets]
    return basics


def _submitter(d: Deployment) -> Object:
    """The pod that KubeRay starts to hand the entrypoint to Ray; its log is that of the run."""
    amounts = {"cpu": "500m", "memory": "512Mi"}
    container: Object = {
        "name": "ray-job-submitter", "image": d.image, "securityContext": _NO_RIGHTS,
        "resources": {"requests": amounts, "limits": dict(amounts)},
    }  # fmt: skip
    spec = {**_pod_basics(d), "automountServiceAccountToken": False, "containers": [container]}
    return {"metadata": {"labels": _labels(d)}, "spec": spec}


def _volumes(d: Deployment) -> tuple[list[Object], list[Object]]:
    """(mounts of a container, volumes of its pod)."""
    items = [{"key": _key(path), "path": path} for path in sorted(d.files)]
    mounts: list[Object] = [{"name": "workflow", "mountPath": WORKFLOW_FOLDER, "readOnly": True}]
    volumes: list[Object] = [
        {"name": "workflow", "configMap": {"name": f"{d.name}-workflow", "items": items}}
    ]
    for number, volume in enumerate(d.volumes):
        name = f"volume-{number}"
        read_only = {"readOnly": True} if volume.read_only or volume.secret else {}
        mounts.append({"name": name, "mountPath": volume.path, **read_only})
        source: Object = {"persistentVolumeClaim": {"claimName": volume.claim}}
        if volume.secret:
            source = {"secret": {"secretName": volume.secret, "defaultMode": 0o440}}
        volumes.append({"name": name, **source})
    return mounts, volumes


def _cron_job(d: Deployment) -> Object:
    amounts = {"cpu": "50m", "memory": "128Mi"}
    label = "metadata.labels['batch.kubernetes.io/{}']"
    env = {"JOB_NAME": label.format("job-name"), "JOB_UID": label.format("controller-uid")}
    container: Object = {
        "name": "submit",
        "image": d.image,
        "command": ["python", "-m", "infra.kube_submit", f"{TEMPLATE_FOLDER}/{TEMPLATE_KEY}"],
        "env": [{"name": k, "valueFrom": {"fieldRef": {"fieldPath": v}}} for k, v in env.items()],
        "resources": {"requests": amounts, "limits": {"memory": amounts["memory"]}},
        "securityContext": {**_NO_RIGHTS, "readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "template", "mountPath": TEMPLATE_FOLDER, "readOnly": True}],
    }
    pod: Object = {
        **_pod_basics(d),
        "serviceAccountName": f"{d.name}-submit",
        "containers": [container],
        "volumes": [{"name": "template", "configMap": {"name": f"{d.name}-rayjob"}}],
    }
    job: Object = {
        # Another pod takes over when this one's node goes; a run that failed is not started again.
        "backoffLimit": 5,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]}},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {"metadata": {"labels": _labels(d)}, "spec": pod},
    }
    if d.deadline_s:
        whole = (d.deadline_s + d.start_within_s) * (d.retries + 1) + _PATIENCE_S
        job["activeDeadlineSeconds"] = whole
    spec = {
        "schedule": d.cron,
        "timeZone": d.timezone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": d.start_within_s,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"metadata": {"labels": _labels(d)}, "spec": job},
    }
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": _metadata(d, d.name), "spec": spec}


def _ray_cron_job(d: Deployment) -> Object:
    spec = {"schedule": d.cron, "timeZone": d.timezone, "jobTemplate": _job_spec(d)}
    return {"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": _metadata(d, d.name), "spec": spec}


def _rights(d: Deployment) -> list[Object]:
    """What the CronJob's container may do: make RayJobs in this namespace, and look at them."""
    name, group = f"{d.name}-submit", "rbac.authorization.k8s.io"
    rule = {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list"]}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(d, name)},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": _metadata(d, name), "rules": [rule]},
        {
            "apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": _metadata(d, name),
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": d.namespace}],
        },
    ]  # fmt: skip


def _key(path: str) -> str:
    """Keys of a ConfigMap have no slash; the hash keeps a/b and a-b apart."""
    if "/" not in path:
        return path
    return f"{path.replace('/', '-')}.{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def _keys(files: Mapping[str, str]) -> dict[str, str]:
    return {_key(path): files[path] for path in sorted(files)}


def _config(d: Deployment, name: str, data: Mapping[str, str]) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(d, name), "data": dict(data)}


def _labels(d: Deployment) -> dict[str, str]:
    return {"app.kubernetes.io/name": "pv3d", "app.kubernetes.io/instance": d.name}


def _metadata(d: Deployment, name: str) -> Object:
    return {"name": name, "namespace": d.namespace, "labels": _labels(d)}
