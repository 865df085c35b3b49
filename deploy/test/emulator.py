"""Deploys the synthesized templates by CloudFormation on an emulator of AWS (ministack), and holds an election on what they
made: the services run with the variables of the deployed task definitions, on the stream, consumers and tables by their real
names. `emulator.py CDK_OUT` needs cargo, and boto3 and ministack in the Python that runs it.

Must never leave out more than what the emulator has not got, which is listed below; what it gets wrong silently (protocol of
target groups, time to live) is asserted on the templates themselves, by template.test.ts.
"""

import hashlib
import json
import pathlib
import ssl
import sys
import time

import boto3

from rig import ROOT, SERVICES, Command, Failed, build, environment, expect, free_ports, listening, main, run_an_election, say

# Types that this emulator's CloudFormation does not have. Consumers are registered by the call that CloudFormation would make.
MISSING_TYPES = {
    "AWS::ApplicationAutoScaling::ScalableTarget", "AWS::ApplicationAutoScaling::ScalingPolicy", "AWS::EC2::FlowLog",
    "AWS::EC2::SecurityGroupEgress", "AWS::EC2::SecurityGroupIngress", "AWS::Kinesis::StreamConsumer",
}
# Alarms on an expression instead of one metric.
MISSING_PROPERTIES = {"AWS::CloudWatch::Alarm": "Metrics"}
# As many voters as it stores within seconds. Of each voter only the last vote is stored; the others are replaced before.
VOTERS_AT_ONCE = 2_000
STACKS = ("votestream-data", "votestream-registry", "votestream-service")
PARAMETERS = {
    "votestream-service": {
        "CertificateArn": "arn:aws:acm:us-east-1:000000000000:certificate/example", "ImageTag": "test", "CollectorTag": "test",
    },
}
CONSUMER = "AWS::Kinesis::StreamConsumer"
# What ECS would read from the secrets of the templates, for an operator who votes for everybody.
KEY = "a-key-of-this-check-and-of-nobody-else"
AUTH = f'''
[[key]]
id = "check"
sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"
scopes = ["manage:*", "relay:*"]
'''


def is_missing(resource):
    return resource["Type"] in MISSING_TYPES or MISSING_PROPERTIES.get(resource["Type"]) in resource.get("Properties", {})


class Account:
    """Calls to the emulator."""

    def __init__(self, endpoint):
        self.endpoint = endpoint

    def __getattr__(self, service):
        return boto3.client(
            service, endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id="stand-in", aws_secret_access_key="stand-in",
        )

    def bootstrap(self):
        """What `cdk bootstrap` leaves behind, as far as the templates look at it."""
        self.ssm.put_parameter(Name="/cdk-bootstrap/hnb659fds/version", Value="30", Type="String")
        self.s3.create_bucket(Bucket="templates")

    def deploy(self, name, template):
        """Returns the resources that were left out."""
        left_out = {id: one for id, one in template["Resources"].items() if is_missing(one)}
        kept = {id: without(one, left_out) for id, one in template["Resources"].items() if id not in left_out}
        outputs = {id: output(one, left_out) for id, one in template.get("Outputs", {}).items()}
        body = {**template, "Resources": kept, "Outputs": outputs}
        # Too large for a call: CloudFormation fetches it, as it does when the CDK deploys.
        self.s3.put_object(Bucket="templates", Key=name, Body=json.dumps(body).encode())
        self.cloudformation.create_stack(
            StackName=name, TemplateURL=f"{self.endpoint}/templates/{name}", Capabilities=["CAPABILITY_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in PARAMETERS.get(name, {}).items()],
        )
        for _ in range(600):
            stack = self.cloudformation.describe_stacks(StackName=name)["Stacks"][0]
            if not stack["StackStatus"].endswith("IN_PROGRESS"):
                break
            time.sleep(0.2)
        if stack["StackStatus"] != "CREATE_COMPLETE":
            events = self.cloudformation.describe_stack_events(StackName=name)["StackEvents"]
            failed = [f"{one['LogicalResourceId']}: {one.get('ResourceStatusReason')}"
                      for one in events if one["ResourceStatus"].endswith("FAILED")]
            raise Failed(f"{name}: {stack['StackStatus']}: {failed}")
        made = self.cloudformation.describe_stack_resources(StackName=name)["StackResources"]
        expect(f"resources of {name} that were made", len(made), len(kept))
        for kind in sorted({one["Type"] for one in left_out.values()}):
            count = sum(one["Type"] == kind for one in left_out.values())
            say(f"left out, since the emulator has not got it: {kind}{' on expressions' if kind in MISSING_PROPERTIES else ''}, {count}")
        return left_out


def without(resource, gone):
    """A resource that does not wait for one that is gone."""
    depends = resource.get("DependsOn", [])
    depends = [depends] if isinstance(depends, str) else depends
    return {**resource, "DependsOn": [one for one in depends if one not in gone]}


def output(output, gone):
    """An output; in place of the ARN of a consumer that is gone, what it will look like: roles are made from it."""
    of, _ = output["Value"].get("Fn::GetAtt", (None, None)) if isinstance(output["Value"], dict) else (None, None)
    if of not in gone:
        return output
    name = gone[of]["Properties"]["ConsumerName"]
    return {**output, "Value": f"arn:aws:kinesis:us-east-1:000000000000:stream/votestream/consumer/{name}:1"}


def secrets_of(template, service):
    """Variables of a service that ECS fills from Secrets Manager. The emulator does not tell their names."""
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::ECS::TaskDefinition" and resource["Properties"]["Family"] == f"votestream-{service}":
            return {one["Name"] for one in resource["Properties"]["ContainerDefinitions"][0].get("Secrets", [])}
    raise Failed(f"{service} has no task definition")


def check(rig):
    out = pathlib.Path(sys.argv[1]).resolve()
    binaries = build()
    port, ingest, tally, persist = free_ports(4)
    endpoint = f"http://127.0.0.1:{port}"
    rig.start(
        "ministack", [sys.executable, ROOT / "tests/conformance/run_ministack.py"],
        environment(BIND_HOST="127.0.0.1", IOT_MTLS_ENABLED="0", GATEWAY_PORT=str(port), TMPDIR=str(rig.work)),
    )
    rig.ready("ministack", lambda: listening(port))

    account = Account(endpoint)
    account.bootstrap()
    templates = {name: json.loads((out / f"{name}.template.json").read_text()) for name in STACKS}
    left_out = {id: one for name in STACKS for id, one in account.deploy(name, templates[name]).items()}

    consumers = [one["Properties"]["ConsumerName"] for one in left_out.values() if one["Type"] == CONSUMER]
    expect("registered consumers", sorted(consumers), ["votestream-persist", "votestream-tally"])
    stream = account.kinesis.describe_stream_summary(StreamName="votestream")["StreamDescriptionSummary"]
    expect("open shards", stream["OpenShardCount"], 4)
    for name in consumers:
        account.kinesis.register_stream_consumer(StreamARN=stream["StreamARN"], ConsumerName=name)

    for service, listen in zip(SERVICES, (ingest, persist, tally)):
        task = account.ecs.describe_task_definition(taskDefinition=f"votestream-{service}")["taskDefinition"]
        container = next(one for one in task["containerDefinitions"] if one["name"] == f"{service}-svc")
        variables = {one["name"]: one["value"] for one in container["environment"]}
        expect(f"{service} is told its stream and tables",
               (variables["VOTESTREAM_STREAM"], variables["VOTESTREAM_TABLE_PREFIX"]), ("votestream", "votestream-"))
        secrets = secrets_of(templates["votestream-service"], service)
        expect(f"secrets of {service}", secrets, set() if service == "persist" else {"AUTH_FILE_TEXT"})
        variables.update(dict.fromkeys(secrets, AUTH))
        # There is no collector here; and nothing listens but on loopback.
        variables.pop("OTEL_EXPORTER_OTLP_ENDPOINT")
        if "VOTESTREAM_LISTEN" in variables:
            variables["VOTESTREAM_LISTEN"] = f"127.0.0.1:{listen}"
        rig.start(
            service, [binaries / f"{service}-svc"],
            environment(**variables, AWS_ENDPOINT_URL_KINESIS=endpoint, AWS_ENDPOINT_URL_DYNAMODB=endpoint),
        )
    for service, listen in (("ingest", ingest), ("tally", tally)):
        rig.ready(service, lambda listen=listen: listening(listen))

    # Each task has a certificate of its own. A load balancer takes any; the command is told which.
    certificates = rig.work / "tasks.pem"
    certificates.write_text("".join(ssl.get_server_certificate(("127.0.0.1", listen)) for listen in (ingest, tally)))
    stranger = Command(binaries / "votestream", ingest, tally, certificates)
    expect("what a stranger is told", stranger("poll", "list", answers=(3,), otherwise="nothing"), "nothing")
    run_an_election(Command(binaries / "votestream", ingest, tally, certificates, KEY), VOTERS_AT_ONCE)
    for service in SERVICES:
        expect(f"exit code of {service} after SIGTERM", rig.stop(service), 0)
    for table in ("polls", "votes", "tallies", "shards"):
        rows = account.dynamodb.scan(TableName=f"votestream-{table}", Limit=1)["Count"]
        expect(f"rows in votestream-{table}", rows > 0, True)


main(check)
