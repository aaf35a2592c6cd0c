"""The first message to a process of a shard, with all that it needs to start."""

from onelane.cluster.control import links_to_proto, placement_to_proto
from onelane.config import App
from onelane.core.validation import to_json
from onelane.supervisor.placing import Start
from onelane.supervisor.shared_resources import SharedResources
from onelane.supervisor.supervised_shard import SupervisedShard
from onelane.v1 import control_pb2


def setup_message(
    app: str, settings: App, shard: SupervisedShard, start: Start, shared: SharedResources
) -> control_pb2.Setup:
    """shard: its `settings.generation` is that of the services' settings in `settings`."""
    setup = control_pb2.Setup(
        app=app,
        name=shard.member.name,
        index=shard.index,
        settings=to_json(settings),
        address=shard.member.address,
        socket=shard.member.socket,
        peers=shared.peers,
        placement=placement_to_proto(start.placement),
        tracing=shared.telemetry.traces,
        sampler=shared.telemetry.sampler,
        sampler_arg=shared.telemetry.sampler_arg,
        logs=shared.telemetry.logs,
        app_dir=shared.app_dir,
        generation=shard.settings.generation,
        identity_key=start.identity_key or shared.identity_key,
        asserts_to=shared.accepting(app),
        life=shard.member.life,
    )
    if start.change is not None:
        setup.change.CopyFrom(start.change)
    if start.links is not None:
        setup.links.CopyFrom(links_to_proto(start.links))
    if shared.lives is not None:
        shared.lives.add_fence(setup)
    return setup
