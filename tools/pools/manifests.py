"""Manifests of a farm and of a training job on several machines, from the table of accelerators: files in farm/.

Workers are Buildbarn's, in two halves: `worker` has the key to the farm and runs nothing of anybody's, `runner` runs
actions and has neither key nor rights. All engines are told the one property that targets ask for.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

NOTE = (
    "# Written by `./bazelw run //tools/pools:table` from the table of accelerators. Not yet run: see docs/pools.md.\n"
)
NODES = 2
PORT = 29500
"""torchrun's own."""

STEP = ["sft", "--model", "/data/model", "--data", "/data/chat.jsonl", "--out", "/data/out", "--backend", "fsdp"]
NOBODY = 65534
DIGITS = 12
SECONDS_TO_STOP = 300
"""For a checkpoint, after SIGTERM."""

SLOTS = 4
"""Actions at a time of a worker of the cpu's; a card is one test's alone."""

LEASES = "/leases"
"""Where a runner has the volume that all of one machine share, which takes its owner from the image."""

RUNNER_IMAGE = "plumbline-runner"
Manifest = dict[str, Any]


def image(names: Mapping[str, Any], accelerator: str, locks: Mapping[str, str]) -> str:
    """The name of an image of farm/Containerfile, by its wheels: the cpu's lock, and its own in place of some."""
    wheels = "".join(
        locks[each] for each in sorted({names["ACCELERATORS"][each].lock for each in ("cpu", accelerator)})
    )
    return f"plumbline-{accelerator}:{hashlib.sha256(wheels.encode()).hexdigest()[:DIGITS]}"


def torchrun(node_rank: str, ranks: str, address: str) -> list[str]:
    """The command of each machine, with whatever its system has for these three."""
    rendezvous = [f"--nnodes={NODES}", f"--node-rank={node_rank}", f"--nproc-per-node={ranks}"]
    return ["torchrun", *rendezvous, f"--master-addr={address}", f"--master-port={PORT}", "-m", "training"]


def _safe(writable: Mapping[str, str]) -> Manifest:
    """What every container has: no root, no rights, nothing to write but what is named."""
    return {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in writable.items()],
    }


def _pod(containers: list[Manifest], volumes: list[Manifest], **more: Any) -> Manifest:
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": NOBODY,
            "runAsGroup": NOBODY,
            "fsGroup": NOBODY,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": containers,
        "volumes": volumes,
        **more,
    }


def _resources(row: Any, cards: int, memory: str) -> Manifest:
    limits = {"memory": memory} | ({row.resource: cards} if cards else {})
    return {"requests": {"cpu": 4 * max(cards, 1), **limits}, "limits": limits}


def _training_pod(names: Mapping[str, Any], locks: Mapping[str, str], address: str, **more: Any) -> Manifest:
    """What runs on each machine.

    Args:
        names: of accelerators.bzl.
        locks: the text of each lock by its path.
        address: of the first machine.
        **more: what the pod has beside.
    """
    accelerator = "gpu-nvidia"
    row = names["ACCELERATORS"][accelerator]
    cards = max(row.cards)
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    container = {
        "name": "training",
        "image": image(names, accelerator, locks),
        "command": [*torchrun("$(NODE_RANK)", str(cards), address), *STEP],
        "env": [
            {"name": "NODE_RANK", "valueFrom": index},
            {"name": "HOME", "value": "/tmp"},
            {"name": "OMP_NUM_THREADS", "value": "4"},
        ],
        "resources": _resources(row, cards, "128Gi"),
        **_safe({"data": "/data", "tmp": "/tmp", "shared-memory": "/dev/shm"}),
    }
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": "plumbline-data"}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
    ]
    return _pod([container], volumes, terminationGracePeriodSeconds=SECONDS_TO_STOP, **more)


def training(names: Mapping[str, Any], locks: Mapping[str, str]) -> str:
    """A Job with a pod for each machine, and the Service by which they find the first.

    A pod that is lost or fails takes the others with it: all are started again and go on from the last checkpoint.
    """
    label = {"app": "plumbline-training"}
    address = "plumbline-training-0.plumbline-training"
    pod = _training_pod(names, locks, address, restartPolicy="OnFailure", subdomain="plumbline-training")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "plumbline-training"},
        # Machines find each other before any is ready.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": label},
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "plumbline-training"},
        "spec": {
            "completionMode": "Indexed",
            "completions": NODES,
            "parallelism": NODES,
            "backoffLimit": 6 * NODES,
            "template": {"metadata": {"labels": label}, "spec": pod},
        },
    }
    return _dump([service, job])


def jobset(names: Mapping[str, Any], locks: Mapping[str, str]) -> str:
    """The same where JobSet is installed: it makes the Service, and starts all machines again when one is lost."""
    address = "plumbline-training-node-0-0.plumbline-training"
    job = {
        "completionMode": "Indexed",
        "completions": NODES,
        "parallelism": NODES,
        # The first pod that is lost fails the Job, and with it the set, which then begins anew as a whole.
        "backoffLimit": 0,
        "template": {"spec": _training_pod(names, locks, address, restartPolicy="Never")},
    }
    return _dump(
        [
            {
                "apiVersion": "jobset.x-k8s.io/v1alpha2",
                "kind": "JobSet",
                "metadata": {"name": "plumbline-training"},
                "spec": {
                    "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
                    "failurePolicy": {"maxRestarts": 6 * NODES},
                    "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": job}}],
                },
            }
        ]
    )


def buildbarn(pool: str, slots: int, leases: str = "") -> str:
    """The configuration of a worker of Buildbarn's: what it says of itself, and the key by which it is known.

    Args:
        pool: whose actions it takes.
        slots: how many at a time.
        leases: the folder in which tests find out whose a card is, if it is not each worker's own.
    """
    told = f"\n      environmentVariables: {{ PLUMBLINE_LEASES: '{leases}' }}," if leases else ""
    return f"""\
local tls = {{
  server_certificate_authorities: importstr '/etc/plumbline/ca.crt',
  client_key_pair: {{ files: {{
    certificate_path: '/etc/plumbline/tls.crt',
    private_key_path: '/etc/plumbline/tls.key',
    refresh_interval: '3600s',
  }} }},
}};
local storage = {{ grpc: {{ address: 'storage:8981', tls: tls }} }};
{{
  blobstore: {{ contentAddressableStorage: storage, actionCache: storage }},
  scheduler: {{ address: 'scheduler:8983', tls: tls }},
  maximumMessageSizeBytes: 16 * 1024 * 1024,
  buildDirectories: [{{
    native: {{
      buildDirectoryPath: '/worker/build',
      cacheDirectoryPath: '/worker/cache',
      maximumCacheFileCount: 400000,
      maximumCacheSizeBytes: 50 * 1024 * 1024 * 1024,
      cacheReplacementPolicy: 'LEAST_RECENTLY_USED',
    }},
    runners: [{{
      endpoint: {{ address: 'unix:///worker/runner' }},
      concurrency: {slots},
      platform: {{ properties: [{{ name: 'Pool', value: '{pool}' }}] }},
      workerId: {{ pool: '{pool}' }},{told}
    }}],
  }}],
}}
"""


RUNNER = """\
{
  buildDirectoryPath: '/worker/build',
  grpcServers: [{ listenPaths: ['/worker/runner'], authenticationPolicy: { allow: {} } }],
}
"""


def _configurations(names: Mapping[str, Any], leases: str = "") -> dict[str, str]:
    """File -> text, one for the workers of each pool and one for all runners."""
    return {
        f"{pool}.jsonnet": buildbarn(pool, 1 if row.cards else SLOTS, leases if row.cards else "")
        for pool, row in names["pools"]().items()
    } | {"runner.jsonnet": RUNNER}


def kubernetes(names: Mapping[str, Any]) -> str:
    """Workers of each pool, their configuration, and the one way that is open to them."""
    label = {"app": "plumbline-worker"}
    configuration = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "plumbline-workers"},
        "data": _configurations(names),
    }
    network = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "plumbline-workers"},
        "spec": {
            "podSelector": {"matchLabels": label},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [],
            "egress": [
                {
                    "to": [{"podSelector": {"matchLabels": {"app": "plumbline-farm"}}}],
                    "ports": [{"protocol": "TCP", "port": port} for port in (8981, 8983)],
                },
                {
                    "to": [
                        {
                            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
                        }
                    ],
                    "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
                },
            ],
        },
    }
    return _dump([configuration, network, *(_deployment(names, pool, label) for pool in names["pools"]())])


def _deployment(names: Mapping[str, Any], pool: str, label: Manifest) -> Manifest:
    cell = names["pools"]()[pool]
    row = names["ACCELERATORS"][cell.accelerator]
    shared = {"configuration": "/configuration", "worker": "/worker"}
    worker = {
        "name": "worker",
        "image": "bb-worker",
        "args": [f"/configuration/{pool}.jsonnet"],
        **_safe(shared | {"farm": "/etc/plumbline"}),
    }
    runner = {
        "name": "runner",
        "image": RUNNER_IMAGE,
        "command": ["/bb/bb_runner", "/configuration/runner.jsonnet"],
        "resources": _resources(row, cell.cards, f"{16 * max(cell.cards, 1)}Gi"),
        **_safe(shared | {"bb": "/bb", "tmp": "/tmp", "shared-memory": "/dev/shm"}),
    }
    directories = {
        "name": "directories",
        "image": RUNNER_IMAGE,
        "command": ["mkdir", "-p", "/worker/build", "/worker/cache"],
        **_safe({"worker": "/worker"}),
    }
    volumes: list[Manifest] = [
        {"name": "configuration", "configMap": {"name": "plumbline-workers"}},
        {"name": "farm", "secret": {"secretName": "plumbline-farm", "defaultMode": 0o440}},
        *({"name": name, "emptyDir": {}} for name in ("bb", "tmp", "worker")),
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
    ]
    installer = {"name": "installer", "image": "bb-runner-installer", **_safe({"bb": "/bb"})}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"plumbline-{pool}", "labels": label | {"pool": pool}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"pool": pool}},
            "template": {
                "metadata": {"labels": label | {"pool": pool}},
                "spec": _pod([worker, runner], volumes, initContainers=[installer, directories]),
            },
        },
    }


def compose(names: Mapping[str, Any]) -> str:
    """The same workers on a machine with Docker, a profile for each pool; what runs actions has no network.

    Workers of two pools are handed the same cards, so they share the folder of the leases; a pod of Kubernetes is given
    cards of its own.
    """
    safe = {
        "user": f"{NOBODY}:{NOBODY}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
    }
    services: Manifest = {
        "installer": {"image": "bb-runner-installer", "network_mode": "none", "volumes": ["bb:/bb"]},
    }
    for pool, cell in names["pools"]().items():
        row = names["ACCELERATORS"][cell.accelerator]
        cards: Manifest = {}
        if cell.cards and not row.runtime:
            cards = {"devices": [f"{each}:{each}" for each in row.device_files], "group_add": ["video", "render"]}
        elif cell.cards:
            reserved = {"driver": row.runtime, "count": cell.cards, "capabilities": ["gpu"]}
            cards = {"deploy": {"resources": {"reservations": {"devices": [reserved]}}}}
        services[f"runner-{pool}"] = {
            "image": RUNNER_IMAGE,
            "build": {"context": "../../..", "dockerfile": "tools/pools/farm/Containerfile", "target": "runner"},
            "profiles": [pool],
            "command": ["/bb/bb_runner", "/configuration/runner.jsonnet"],
            "depends_on": {"installer": {"condition": "service_completed_successfully"}},
            **safe,
            "network_mode": "none",
            "shm_size": "8gb",
            "tmpfs": ["/tmp"],
            "volumes": ["bb:/bb:ro", f"{pool}:/worker", *([f"leases:{LEASES}"] if cell.cards else [])],
            "configs": [{"source": "runner.jsonnet", "target": "/configuration/runner.jsonnet"}],
            **cards,
        }
        services[f"worker-{pool}"] = {
            "image": "bb-worker",
            "profiles": [pool],
            "command": [f"/configuration/{pool}.jsonnet"],
            # The volume is made with the owner that it has in the runner's image.
            "depends_on": [f"runner-{pool}"],
            **safe,
            "volumes": [f"{pool}:/worker", "./keys:/etc/plumbline:ro"],
            "configs": [{"source": f"{pool}.jsonnet", "target": f"/configuration/{pool}.jsonnet"}],
        }
    whole = {
        "services": services,
        # Compose reads $ as the begin of a variable; there is none in these.
        "configs": {name: {"content": text} for name, text in _configurations(names, LEASES).items()},
        "volumes": {name: {} for name in ("bb", "leases", *names["pools"]())},
    }
    return _dump([whole])


def nativelink(names: Mapping[str, Any]) -> str:
    """What NativeLink's scheduler and a worker of each pool hold beside what is theirs to say."""
    return (
        json.dumps(
            {
                "schedulers": [{"name": "MAIN", "simple": {"supported_platform_properties": {"Pool": "exact"}}}],
                "workers": [
                    {"local": {"platform_properties": {"Pool": {"values": [pool]}}}} for pool in names["pools"]()
                ],
            },
            indent=2,
        )
        + "\n"
    )


def buildfarm(names: Mapping[str, Any]) -> str:
    """The queues of Buildfarm, and what a worker of each pool holds."""
    properties = {pool: [{"name": "Pool", "value": pool}] for pool in names["pools"]()}
    queues = [{"name": pool, "allowUnmatched": False, "properties": each} for pool, each in properties.items()]
    workers = {
        pool: {
            "worker": {"dequeueMatchSettings": {"acceptEverything": False, "allowUnmatched": False, "properties": each}}
        }
        for pool, each in properties.items()
    }
    return _dump([{"backplane": {"queues": queues}, "workers": workers}])


class _Dumper(yaml.SafeDumper):
    """YAML without references, and with texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:
        """Nothing is written once and referred to."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _dump(documents: list[Manifest]) -> str:
    return NOTE + yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120)


def files(names: Mapping[str, Any], locks: Mapping[str, str]) -> dict[str, str]:
    """Every file that follows from the table, with its text.

    Args:
        names: the global names of accelerators.bzl.
        locks: the text of each lock by its path.
    """
    return {
        "tools/pools/farm/buildfarm.yaml": buildfarm(names),
        "tools/pools/farm/compose.yaml": compose(names),
        "tools/pools/farm/jobset.yaml": jobset(names, locks),
        "tools/pools/farm/nativelink.json": nativelink(names),
        "tools/pools/farm/training.yaml": training(names, locks),
        "tools/pools/farm/workers.yaml": kubernetes(names),
    }
