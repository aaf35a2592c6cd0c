"""What an orchestrator has to grant a supervisor follows from its file."""

from onelane import config
from onelane.supervisor.durations import longest_leave_s, longest_start_s, longest_stop_s

ONE = {"services": ["tests.echo.service:Echo"], "listen": "127.0.0.1:0", "drain_s": 20, "start_s": 10, "stop_s": 4}
OTHER = ONE | {"drain_s": 0, "start_s": 1, "stop_s": 0}


def test_one_app_may_take_its_drain_its_services_stop_and_what_the_supervisor_adds() -> None:
    read = config.parse({"apps": {"one": ONE}})
    assert longest_stop_s(read) == 20 + 2.5 + 5 + 4 + 3
    assert longest_start_s(read) == 2 * 10


def test_apps_start_and_drain_one_after_another_and_each_sink_ends_after_them() -> None:
    read = config.parse({"apps": {"one": ONE, "other": OTHER}})
    assert longest_stop_s(read, sinks=1) == (20 + 2.5 + 5 + 4) + (2.5 + 5) + 2 * 3
    assert longest_start_s(read) == 2 * 10 + 2 * 1


def test_in_a_cluster_the_keys_of_each_app_move_before_its_drain() -> None:
    read = config.parse({"apps": {"one": ONE, "other": OTHER}})
    assert longest_leave_s(read) == 20 + 2.5
    assert longest_stop_s(read, in_cluster=True) == longest_stop_s(read) + (20 + 2.5) + (0 + 2.5) + 2
