"""All scenarios of machines of a cluster, and those that `make test` has time for."""

from functools import partial

from tests.chaos import double_failures, failures, store_failures
from tests.chaos.failures import Scenario

SHORT = (
    Scenario("joins and leaves", failures.joins_and_leaves),
    Scenario("killed", failures.killed),
    Scenario("cut off from etcd", failures.cut_off_from_etcd),
    Scenario("cut one way between machines", failures.cut_one_way_between_machines),
    Scenario("frozen", failures.frozen),
    Scenario("one rolled", failures.one_rolled),
)
STEPS = range(1, 9)
ALL = (
    *SHORT,
    Scenario("all rolled", failures.rolled),
    Scenario("not heard by etcd", failures.not_heard_by_etcd),
    Scenario("does not hear etcd", failures.does_not_hear_etcd),
    Scenario("cut off from etcd and the others", failures.cut_off_from_all),
    Scenario("cut off from the others", failures.cut_off_from_others),
    Scenario("not heard by the others", failures.not_heard_by_others),
    Scenario("does not hear the others", failures.does_not_hear_others),
    Scenario("loses packets", failures.loses_packets),
    Scenario("etcd loses its leader", failures.etcd_loses_its_leader),
    Scenario("etcd is down", failures.etcd_is_down),
    Scenario("far apart", failures.far_apart),
    Scenario("far from etcd, and cut off for a moment", failures.far_and_cut_off_for_a_moment),
    Scenario("too far from etcd", failures.too_far_from_etcd),
    Scenario("etcd's leader in the minority", store_failures.etcd_leader_in_the_minority),
    Scenario("etcd's first member in the minority", store_failures.etcd_first_member_in_the_minority),
    Scenario("etcd's members cut apart", store_failures.etcd_members_cut_apart),
    Scenario("PostgreSQL dies", store_failures.postgres_dies),
    Scenario("two machines", double_failures.two_machines),
    Scenario("a machine and a store", double_failures.machine_and_store),
    Scenario("clock is slow", failures.clock_is_slow),
    Scenario("clock is fast", failures.clock_is_fast),
    Scenario("coordinator killed", failures.killed, harms_coordinator=True),
    Scenario("coordinator frozen", failures.frozen, harms_coordinator=True),
    *(
        Scenario(f"coordinator killed at write {step} of a change", partial(failures.coordinator_dies, step=step), True)
        for step in STEPS
    ),
)
BROKEN = Scenario("clock is broken", failures.clock_is_broken)
