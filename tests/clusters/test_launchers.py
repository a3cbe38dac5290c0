"""The launcher files: Ray takes them, the clouds know their fields, and what they promise holds."""

import copy
import json
import re
from pathlib import Path

import boto3
import jsonschema
import moto
import pytest
import ray.autoscaler
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

ROOT = Path(__file__).parents[2]
LAUNCHERS = ["aws", "gcp", "local"]
CLOUDS = ["aws", "gcp"]
SCHEMA = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())

# Of https://cloud.google.com/compute/docs/reference/rest/v1/instances, what a launcher's node needs; True: any value.
GCP_INSTANCE = {
    "machineType": True,
    "serviceAccounts": {"email": True, "scopes": True},
    "networkInterfaces": {"network": True, "subnetwork": True, "accessConfigs": True},
    "disks": {
        "boot": True,
        "autoDelete": True,
        "type": True,
        "initializeParams": {"diskSizeGb": True, "diskType": True, "sourceImage": True, "labels": True},
    },
    "labels": True,
    "metadata": {"items": {"key": True, "value": True}},
    "guestAccelerators": {"acceleratorType": True, "acceleratorCount": True},
    "scheduling": {
        "onHostMaintenance": True,
        "automaticRestart": True,
        "preemptible": True,
        "provisioningModel": True,
        "instanceTerminationAction": True,
    },
}


def text_of(name):
    return (ROOT / "clusters" / f"{name}.yaml").read_text()


def read(name):
    return yaml.safe_load(text_of(name))


def check(config):
    """What `ray up` does before it asks a cloud."""
    jsonschema.validate(config, SCHEMA)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def groups(config):
    return {name: group for name, group in config["available_node_types"].items() if name != config["head_node_type"]}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_takes_the_file(name):
    assert check(read(name))["cluster_name"] == "segray"


MISSPELLINGS = [
    (lambda config: config, "file_mount"),
    (lambda config: config["auth"], "ssh_usr"),
    (lambda config: config.setdefault("docker", {}), "imag"),
]


@pytest.mark.parametrize(("within", "misspelt"), MISSPELLINGS)
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_misspelt_name_is_refused_and_named(name, within, misspelt):
    config = read(name)
    within(config)[misspelt] = "x"
    with pytest.raises(jsonschema.ValidationError, match=f"'{misspelt}' was unexpected"):
        jsonschema.validate(config, SCHEMA)
    with pytest.raises(jsonschema.ValidationError, match=f"'{misspelt}' was unexpected"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", CLOUDS)
def test_a_misspelt_name_in_a_node_type_is_refused_and_named(name):
    config = read(name)
    groups(config)["gpu"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="'max_worker' was unexpected"):
        validate_config(prepare_config(config))


def ec2_complaints(node_config):
    shape = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    return ParamValidator().validate(node_config | {"MinCount": 1, "MaxCount": 1}, shape).generate_report()


def test_ec2_knows_every_field_and_its_type():
    for group in read("aws")["available_node_types"].values():
        assert not ec2_complaints(group["node_config"])


@pytest.mark.parametrize(
    ("within", "misspelt"),
    [
        (lambda node: node, "InstanceTyp"),
        (lambda node: node["NetworkInterfaces"][0], "AssociatePublicIp"),
        (lambda node: node["BlockDeviceMappings"][0]["Ebs"], "VolumSize"),
    ],
)
def test_ec2_names_a_misspelt_field(within, misspelt):
    node = copy.deepcopy(read("aws")["available_node_types"]["gpu"]["node_config"])
    within(node)[misspelt] = "x"
    assert f'"{misspelt}"' in ec2_complaints(node)


def unknown(found, known, where=""):
    """The fields that are not in the list, by their dotted names."""
    if known is True:
        return []
    if isinstance(found, list):
        return [name for one in found for name in unknown(one, known, where)]
    inner = [name for key in found if key in known for name in unknown(found[key], known[key], f"{where}{key}.")]
    return [where + key for key in found if key not in known] + inner


def test_compute_engine_knows_every_field():
    for group in read("gcp")["available_node_types"].values():
        assert unknown(group["node_config"], GCP_INSTANCE) == []
    planted = {"machineTyp": 1, "disks": [{"initializeParams": {"diskSize": 1}}]}
    assert unknown(planted, GCP_INSTANCE) == ["machineTyp", "disks.initializeParams.diskSize"]


@pytest.mark.parametrize("name", CLOUDS)
def test_nothing_runs_until_it_is_wanted_and_no_more_than_is_allowed(name):
    config = check(read(name))
    workers = groups(config).values()
    assert all(group["min_workers"] == 0 for group in workers)
    assert sum(group["max_workers"] for group in workers) == config["max_workers"] < 20
    assert 5 <= config["idle_timeout_minutes"] <= 30
    assert config["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_is_on_demand_and_has_nothing_to_train_on(name):
    config = check(read(name))
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert head["labels"] == {"ray.io/market-type": "on-demand"}


def is_spot(node_config):
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType")
    return market == "spot" or node_config.get("scheduling", {}).get("provisioningModel") == "SPOT"


@pytest.mark.parametrize("name", CLOUDS)
def test_the_label_tells_spot_machines_from_the_others(name):
    config = check(read(name))
    markets = {}
    for group_name, group in config["available_node_types"].items():
        markets[group_name] = group["labels"]["ray.io/market-type"]
        assert markets[group_name] == ("spot" if is_spot(group["node_config"]) else "on-demand")
    assert markets == {"head": "on-demand", "cpu": "on-demand", "gpu": "on-demand", "gpu-spot": "spot"}


def asked_for(name, resources, count, failing=()):
    """Which groups Ray's own scheduler starts for so many requests on a cluster that has its head alone."""
    config = AutoscalingConfig(read(name), skip_content_hash=True)
    wanted = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(resources)] * count)
    request = SchedulingRequest(
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=wanted,
        recoverable_resource_availabilities=dict.fromkeys(failing, 0.0),
        disable_launch_config_check=True,
    )
    reply = ResourceDemandScheduler(AutoscalerEventLogger).schedule(request)
    assert not reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@pytest.mark.parametrize("name", CLOUDS)
def test_gpus_are_sought_among_spot_machines_first_and_cpus_never_on_gpu_machines(name):
    a_worker = {"GPU": 1, "CPU": 4}
    assert asked_for(name, a_worker, 2) == {"gpu-spot": 2}
    assert asked_for(name, a_worker, 2, failing=["gpu-spot"]) == {"gpu": 2}
    assert asked_for(name, a_worker, 10) == {"gpu-spot": 8, "gpu": 2}
    assert asked_for(name, {"CPU": 1}, 12) == {"cpu": 2}


@pytest.mark.parametrize("name", CLOUDS)
def test_no_node_has_a_public_address(name):
    config = check(read(name))
    assert config["provider"]["use_internal_ips"] is True
    for group in config["available_node_types"].values():
        node = group["node_config"]
        interfaces = node["NetworkInterfaces"] if name == "aws" else node["networkInterfaces"]
        assert interfaces
        assert all(one.get("AssociatePublicIpAddress", name != "aws") is (name != "aws") for one in interfaces)
        assert not any("accessConfigs" in one for one in interfaces)


@pytest.mark.parametrize("name", CLOUDS)
def test_every_machine_and_disk_is_labelled_for_the_bill(name):
    config = check(read(name))
    wanted = config["metadata"]["tags" if name == "aws" else "labels"]
    assert wanted
    for group in config["available_node_types"].values():
        node = group["node_config"]
        if name == "aws":
            tagged = {one["ResourceType"]: one["Tags"] for one in node["TagSpecifications"]}
            assert tagged == {"instance": wanted, "volume": wanted}
        else:
            assert node["labels"] == wanted
            assert all(disk["initializeParams"]["labels"] == wanted for disk in node["disks"])


def test_the_disk_lies_in_the_zone():
    metadata = read("gcp")["metadata"]
    assert metadata["disk"].startswith(f"zones/{metadata['zone']}/")
    assert metadata["zone"].startswith(metadata["region"])


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_variable_at_the_top_has_an_effect_and_an_explanation(name):
    tokens = list(yaml.scan(text_of(name)))
    anchors = [token.value for token in tokens if isinstance(token, yaml.AnchorToken)]
    aliases = {token.value for token in tokens if isinstance(token, yaml.AliasToken)}
    variables = list(read(name)["metadata"])
    assert set(anchors) == aliases
    assert set(variables) <= aliases
    assert next(iter(read(name))) == "metadata"
    documented = (ROOT / "docs" / "clusters.md").read_text()
    assert [variable for variable in variables if f"`{variable}`" not in documented] == []


SECRETS = r"AKIA|ASIA|BEGIN [A-Z ]*PRIVATE KEY|RAY_AUTH_TOKEN|[Pp]assword\s*[=:]\s*\S|://\w+:[^@/\s]+@|aws_secret|ghp_"


def test_no_secret_stands_in_any_file():
    for file in (ROOT / "clusters").iterdir():
        assert not (file.is_file() and re.search(SECRETS, file.read_text())), file
    assert all(re.search(SECRETS, planted) for planted in ["AKIA0123", "postgresql://a:b@host/db", "password: x"])


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_token_travels_as_a_file_alone(name):
    config = check(read(name))
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    commands = json.dumps([value for key, value in config.items() if key.endswith("_commands")])
    assert "token" not in commands


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_private_and_the_large_stay_here(name):
    config = check(read(name))
    assert {".git", ".venv", "data", "results", "*.pem", ".env"} <= set(config["rsync_exclude"])
    for there, here in config["file_mounts"].items():
        if not here.startswith("~"):
            assert (ROOT / here).exists()
            assert there == f"~/segray/{here}"


def test_ec2_gets_private_machines_of_the_right_kinds(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the key pair it makes there
    with moto.mock_aws():
        ec2 = boto3.resource("ec2", region_name="eu-central-1")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")
        subnet = vpc.create_subnet(CidrBlock="10.0.0.0/24")
        subnet.meta.client.modify_subnet_attribute(SubnetId=subnet.id, MapPublicIpOnLaunch={"Value": True})
        group = ec2.create_security_group(GroupName="segray", Description="-", VpcId=vpc.id)
        for profile in ("segray-head", "segray-worker"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
        text = text_of("aws")
        for variable, own in (("subnet", subnet.id), ("security_group", group.id)):
            text = text.replace(read("aws")["metadata"][variable], own)
        config = bootstrap_aws(check(yaml.safe_load(text)))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name, node_type in config["available_node_types"].items():
            tags = {"ray-node-kind": "worker", "ray-node-name": name}
            made = [*provider.create_node(node_type["node_config"], tags, 1)]
            found = ec2.Instance(made[0])
            assert found.public_ip_address is None
            assert found.instance_lifecycle == ("spot" if name == "gpu-spot" else None)
            profile = "segray-head" if name == "head" else "segray-worker"
            assert found.iam_instance_profile["Arn"].endswith(f"/{profile}")
            assert {"Key": "project", "Value": "segray"} in found.tags
            assert {"Key": "ray-cluster-name", "Value": "segray"} in found.tags
            assert found.metadata_options["HttpTokens"] == "required"
