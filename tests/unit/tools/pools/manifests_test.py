"""Manifests of a farm are those of the table, ask for its cards and no rights, and start the command of the test."""

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from tools.bazel.starlark import starlark
from tools.pools import manifests
from tools.pools.table import REFRESH, TABLE, locks

NAMES = starlark(Path(TABLE).read_text())
POOLS = NAMES["pools"]()
ROWS = NAMES["ACCELERATORS"]
FILES = manifests.files(NAMES, locks(Path(), NAMES))


def objects(name: str) -> list[Any]:
    """The documents of a file that is checked in."""
    return list(yaml.safe_load_all(Path("tools/pools/farm", name).read_text()))


@pytest.mark.parametrize("path", FILES)
def test_what_is_checked_in_is_what_the_table_says(path: str) -> None:
    assert Path(path).read_text() == FILES[path], f"{path} is stale. hint: {REFRESH}"


def test_an_image_has_another_name_as_soon_as_one_of_its_locks_changes() -> None:
    texts = locks(Path(), NAMES)
    before = manifests.image(NAMES, "gpu-amd", texts)
    assert re.fullmatch(r"plumbline-gpu-amd:[0-9a-f]{12}", before)
    for accelerator in ("cpu", "gpu-amd"):
        lock = ROWS[accelerator].lock
        assert manifests.image(NAMES, "gpu-amd", texts | {lock: texts[lock] + "#"}) != before
    lock = ROWS["gpu-intel"].lock
    assert manifests.image(NAMES, "gpu-amd", texts | {lock: "#"}) == before


def pods() -> dict[str, Any]:
    """Name -> pod, of every manifest of Kubernetes."""
    found = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in objects("workers.yaml") + objects("training.yaml")
        if each["kind"] in ("Deployment", "Job")
    }
    return {**found, "plumbline-training (JobSet)": job_of_set()["template"]["spec"]}


def job_of_set() -> Any:
    """What the set of jobs makes one of."""
    (whole,) = objects("jobset.yaml")
    (replicated,) = whole["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def test_each_pool_has_a_deployment_that_asks_for_its_cards() -> None:
    found = pods()
    assert found.keys() == {f"plumbline-{pool}" for pool in (*POOLS, "training", "training (JobSet)")}
    for pool, cell in POOLS.items():
        worker, runner = found[f"plumbline-{pool}"]["containers"]
        limits = {key: value for key, value in runner["resources"]["limits"].items() if key != "memory"}
        assert limits == ({ROWS[cell.accelerator].resource: cell.cards} if cell.cards else {})
        assert worker["args"] == [f"/configuration/{pool}.jsonnet"]
        assert "resources" not in worker
    assert len({row.resource for row in ROWS.values()}) == len(ROWS)


@pytest.mark.parametrize("name", pods())
def test_no_pod_has_rights(name: str) -> None:
    pod = pods()[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    for container in pod["containers"] + pod.get("initContainers", []):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_what_runs_actions_has_no_key_and_reaches_nothing_but_the_farm() -> None:
    documents = objects("workers.yaml")
    (policy,) = [each["spec"] for each in documents if each["kind"] == "NetworkPolicy"]
    assert policy["ingress"] == []
    assert sorted(port["port"] for way in policy["egress"] for port in way["ports"]) == [53, 53, 8981, 8983]
    for each in documents:
        if each["kind"] == "Deployment":
            template = each["spec"]["template"]
            assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
            assert each["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
            with_key = [
                container["name"]
                for container in template["spec"]["containers"] + template["spec"]["initContainers"]
                if "farm" in [mount["name"] for mount in container["volumeMounts"]]
            ]
            assert with_key == ["worker"]
    services = objects("compose.yaml")[0]["services"]
    for pool in POOLS:
        runner, worker = services[f"runner-{pool}"], services[f"worker-{pool}"]
        assert runner["network_mode"] == "none"
        assert not [volume for volume in runner["volumes"] if "/etc/plumbline" in volume]
        assert "./keys:/etc/plumbline:ro" in worker["volumes"]
        for service in (runner, worker):
            assert (service["user"], service["read_only"], service["cap_drop"]) == ("65534:65534", True, ["ALL"])


def test_compose_hands_in_the_cards_of_each_pool() -> None:
    services = objects("compose.yaml")[0]["services"]
    for pool, cell in POOLS.items():
        row, runner = ROWS[cell.accelerator], services[f"runner-{pool}"]
        handed = [each.split(":")[0] for each in runner.get("devices", [])]
        assert handed == ([] if row.runtime else row.device_files)
        reserved = runner.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert [(each["driver"], each["count"]) for each in reserved] == (
            [(row.runtime, cell.cards)] * bool(row.runtime)
        )


def test_containers_that_are_handed_the_same_cards_share_the_folder_of_their_leases() -> None:
    (compose,) = objects("compose.yaml")
    for pool, cell in POOLS.items():
        runner = compose["services"][f"runner-{pool}"]
        (configuration,) = [
            compose["configs"][each["source"]] for each in compose["services"][f"worker-{pool}"]["configs"]
        ]
        told = re.findall(r"PLUMBLINE_LEASES: '(.*)'", configuration["content"])
        mounted = [each.split(":")[1] for each in runner["volumes"] if each.split(":")[0] == "leases"]
        assert told == mounted == ([manifests.LEASES] if cell.cards else [])
        assert not [each for each in runner["volumes"] if each.endswith(f"{manifests.LEASES}:ro")], (
            "they make files there"
        )
    assert "leases" in compose["volumes"]
    # A volume that is new has the owner of what is there in the image; runners are nobody.
    image = Path("tools/pools/farm/Containerfile").read_text()
    assert re.search(rf"chown -R {manifests.NOBODY}:{manifests.NOBODY} .*{manifests.LEASES}\b", image)
    # A pod is given cards of its own, and has no such folder.
    (configuration,) = [each["data"] for each in objects("workers.yaml") if each["kind"] == "ConfigMap"]
    assert not [text for text in configuration.values() if "PLUMBLINE_LEASES" in text]


def test_every_engine_is_told_the_property_that_targets_ask_for() -> None:
    (asked,) = re.findall(r"--remote_default_exec_properties=(\w+)=cpu\n", Path(".bazelrc").read_text())
    (configuration,) = [each["data"] for each in objects("workers.yaml") if each["kind"] == "ConfigMap"]
    for pool, cell in POOLS.items():
        text = configuration[f"{pool}.jsonnet"]
        assert re.findall(r"{ name: '(\w+)', value: '([\w-]+)' }", text) == [(asked, pool)]
        assert re.findall(r"concurrency: (\d+)", text) == ["1" if cell.cards else "4"]
    native = json.loads(Path("tools/pools/farm/nativelink.json").read_text())
    assert native["schedulers"][0]["simple"]["supported_platform_properties"] == {asked: "exact"}
    told = [each["local"]["platform_properties"] for each in native["workers"]]
    assert told == [{asked: {"values": [pool]}} for pool in POOLS]
    (farm,) = objects("buildfarm.yaml")
    wanted = {pool: [{"name": asked, "value": pool}] for pool in POOLS}
    assert {each["name"]: each["properties"] for each in farm["backplane"]["queues"]} == wanted
    workers = {pool: each["worker"]["dequeueMatchSettings"] for pool, each in farm["workers"].items()}
    assert {pool: each["properties"] for pool, each in workers.items()} == wanted
    assert not any(each["acceptEverything"] or each["allowUnmatched"] for each in workers.values())


def commands() -> dict[str, list[str]]:
    """Arguments of torchrun wherever a command for several machines is written down."""
    (job,) = [each for each in objects("training.yaml") if each["kind"] == "Job"]
    slurm = Path("tools/pools/farm/train.slurm").read_text()
    (inner,) = re.findall(r"sh -c '(.*?)'", slurm, re.DOTALL)
    (typed,) = re.findall(r"^    (torchrun .*)$", Path("docs/pools.md").read_text(), re.MULTILINE)
    return {
        "kubernetes": job["spec"]["template"]["spec"]["containers"][0]["command"][1:],
        "jobset": job_of_set()["template"]["spec"]["containers"][0]["command"][1:],
        "slurm": shlex.split(inner.replace("\\\n", " "))[2:],
        "docs": shlex.split(typed)[1:],
    }


@pytest.mark.parametrize("where", commands())
def test_torchrun_takes_the_command_and_it_is_that_of_two_machines(where: str) -> None:
    """Where a system fills in a number, one is put: torchrun's own parser takes the rest, the same in all places."""
    filled = [re.sub(r"^(--(?:nnodes|node-rank|nproc-per-node)=)\$.*", r"\g<1>2", each) for each in commands()[where]]
    arguments = get_args_parser().parse_args(filled)
    assert arguments.nnodes == "2"
    assert arguments.master_port == manifests.PORT
    assert (arguments.module, arguments.training_script) == (True, "training")
    flags = [
        [each.split("=")[0] for each in words if each.startswith("--n") or each.startswith("--ma")]
        for words in commands().values()
    ]
    assert all(sorted(one) == sorted(other) for one, other in itertools.pairwise(flags))


def test_the_job_of_kubernetes_has_a_pod_for_each_machine_and_an_address_for_the_first() -> None:
    service, job = objects("training.yaml")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = get_args_parser().parse_args([each.replace("$(NODE_RANK)", "1") for each in container["command"][1:]])
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert int(arguments.nnodes) == spec["completions"]
    assert int(arguments.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    # A pod of an indexed Job has the name of the Job and its index, below the name of the Service.
    assert arguments.master_addr == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == spec["template"]["metadata"]["labels"]
    ranks = [each for each in container["env"] if each["name"] == "NODE_RANK"]
    assert "job-completion-index" in ranks[0]["valueFrom"]["fieldRef"]["fieldPath"]


def test_a_set_of_jobs_has_the_pods_of_the_job_and_begins_anew_as_a_whole() -> None:
    (whole,) = objects("jobset.yaml")
    _, plain = objects("training.yaml")
    (replicated,), job = whole["spec"]["replicatedJobs"], job_of_set()
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 2, 2)
    assert (job["backoffLimit"], replicated["replicas"]) == (0, 1)
    assert whole["spec"]["failurePolicy"]["maxRestarts"] == plain["spec"]["backoffLimit"]
    assert whole["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    # JobSet names a pod after the set, the job, and its number in each, below a Service with the name of the set.
    name = whole["metadata"]["name"]
    command = job["template"]["spec"]["containers"][0]["command"]
    assert f"--master-addr={name}-{replicated['name']}-0-0.{name}" in command
    pods = [plain["spec"]["template"]["spec"], job["template"]["spec"]]
    for pod in pods:
        pod["containers"][0]["command"] = [word for word in command if not word.startswith("--master-addr=")]
        del pod["restartPolicy"]
    del pods[0]["subdomain"]
    assert pods[0] == pods[1], "all else is the same"


def test_slurm_starts_one_torchrun_on_each_machine_and_says_when_to_save() -> None:
    text = Path("tools/pools/farm/train.slurm").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("2", "1", "4")
    assert asked["signal"].startswith("TERM@"), "torchrun passes SIGTERM on to its ranks, and SIGUSR1 ends it"
    assert "MASTER_ADDR=$(scontrol show hostnames" in text
