"""Tests mirror rooms: the tests of `runtime/onelane/<room>/<module>.py` are `tests/<room>/test_<module>.py`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.bounds import LEAST_BOUND_S
from tests.house.test_layers import FILES, ROOMS, SEAMS, is_text
from tests.running_app import ROOT

TESTS = ROOT / "tests"
ROOM_TESTS = sorted(file for room in ROOMS for file in (TESTS / room).rglob("test_*.py"))
BEYOND_MODULES = {
    "cluster/test_arena",
    "cluster/test_arena_like_a_user",
    "cluster/test_arena_leaderboard",
    "cluster/test_arena_ledger",
}
BEYOND_MODULES |= {
    "cluster/test_outage",
    "cluster/test_scenarios",
    "telemetry/sinks/test_seam",
    "cluster/coordination/test_seam",
    "client/test_call_types",
}
"""Of a whole app, or of a seam and all that stands behind it."""
TESTED_BY = {
    "cluster/own_entries": "supervisor/test_machine",
    "supervisor/own_report": "supervisor/test_machine",
    "cli/arguments": "cli/test_main",
    "cli/declared_dicts": "cli/test_state",
    "cli/progress": "supervisor/test_changes_processes",
    "supervisor/admin/progress": "supervisor/test_changes_processes",
    "cli/page_calls": "supervisor/admin/test_call_console",
    "cli/turns": "supervisor/admin/test_turn_commands",
    "shard/held_turns": "supervisor/admin/test_turn_commands",
    "supervisor/cluster_metrics": "supervisor/test_cluster_watch",
    "supervisor/store_status": "supervisor/admin/test_page_durable",
    "supervisor/turn_questions": "supervisor/admin/test_turn_commands",
    "cli/placement": "supervisor/admin/test_placement_commands",
    "cli/admin_client": "cli/test_main",
    "cli/viewport": "cli/test_top",
    "cli/exports": "cli/test_check",
    "cli/keyboard": "cli/test_top",
    "cli/project": "cli/test_new",
    "cli/known_protos": "cli/test_reflection",
    "cli/protos": "cli/test_proto_check",
    "cli/revisions": "cli/test_proto_check",
    "cli/run_apps": "cli/test_main",
    "cli/calling": "cli/test_remote",
    "cli/message_json": "cli/test_reflection",
    "cli/methods_of_server": "cli/test_reflection",
    "cli/proto_text": "cli/test_reflection",
    "cli/protoc": "house/test_generated",
    "cli/status": "cli/test_main",
    "client/answered_call": "client/test_intercepted_call_like_grpcio",
    "client/call_methods": "client/test_call",
    "client/multi_callable": "client/test_channel",
    "client/options": "client/test_subchannel",
    "state/json_values": "cli/test_state",
    "state/stored_changes": "cli/test_state_changes",
    "state/stored_check": "cli/test_state",
    "cluster/coordination/etcd_json": "cluster/coordination/test_etcd",
    "cluster/coordination/etcd_errors": "cluster/coordination/test_etcd",
    "cluster/xds/subscription": "cluster/xds/test_state_of_the_world",
    "supervisor/xds_connection": "supervisor/test_xds_server",
    "cluster/membership/static": "cluster/test_membership",
    "cluster/membership/supervised": "cluster/test_membership",
    "server/chosen_handler": "server/test_interceptors",
    "server/native_call": "server/test_calls_connection_end_stream",
    "server/native_listener": "server/test_listener",
    "server/tls": "client/test_tls",
    "shard/typed_settings": "shard/test_settings",
    "shard/moved_keys": "shard/test_handoff",
    "shard/sibling_service": "shard/test_handoff",
    "testing/changes": "testing/test_cluster_changes",
    "testing/cluster_app": "testing/test_cluster_changes",
    "lane/fence": "lane/test_fenced_lane",
    "shard/lane_stack": "shard/test_watchdog_contract",
    "shard/reminder_metrics": "shard/test_reminder_runs",
    "shard/process": "supervisor/test_supervisor",
    "shard/trial": "cli/test_check",
    "supervisor/trial": "cli/test_check",
    "shard/serving": "server/test_steering",
    "shard/late_calls": "shard/test_given_up_keys",
    "shard/last_turns": "shard/test_handoff_durable",
    "core/moved": "client/test_reopening",
    "core/state_settings": "config/test_file",
    "config/app": "config/test_file",
    "config/checks": "config/test_file",
    "config/configuration": "config/test_file",
    "config/faults": "config/test_file",
    "state/batch": "state/test_journal",
    "state/store_work": "state/test_journal",
    "state/journal_metrics": "state/test_journal",
    "state/memory_store": "state/test_store_contract",
    "state/postgres_connection": "state/test_postgres_store",
    "state/sqlite_file": "state/test_sqlite_store",
    "state/sqlite_read": "state/test_sqlite_store",
    "supervisor/admin/server": "supervisor/admin/test_page",
    "lane/running": "shard/test_watchdog_contract",
    "core/side_effects": "lane/test_kept_turns",
    "server/context_methods": "server/test_handler_misdeeds",
    "server/payloads": "server/test_user_code",
    "server/sibling_connection": "lane/test_forwarder_transparent",
    "server/machine_link_connection": "server/test_machine_link_port",
    "lane/unary_forward": "lane/test_forwarder_transparent",
    "wire/link_client": "wire/test_link",
    "wire/link_server": "wire/test_link",
    "wire/link_blocks": "wire/test_link",
    "wire/link_frames": "wire/test_link",
    "wire/link_reader": "wire/test_link",
    "wire/requests": "wire/test_server",
    "supervisor/app_sockets": "supervisor/test_changes",
    "supervisor/running_change": "supervisor/test_changes",
    "supervisor/orphan_guard_process": "supervisor/test_orphan_guard",
    "supervisor/service_settings": "supervisor/test_app",
    "supervisor/setup_message": "supervisor/test_app",
    "supervisor/shared_resources": "supervisor/test_app",
    "supervisor/link_socket": "supervisor/test_cluster_placing",
    "supervisor/cluster_pins": "supervisor/test_cluster_placing_processes",
    "supervisor/placing": "supervisor/test_changes",
    "supervisor/own_placing": "supervisor/test_changes",
    "supervisor/turn_away": "supervisor/test_app_drained",
    "supervisor/lane_watch": "supervisor/test_liveness",
    "supervisor/server_process": "cli/test_entry",
    "supervisor/launcher": "supervisor/test_supervisor",
    "supervisor/supervised_shard": "supervisor/test_app",
    "supervisor/systemd": "house/test_deploy",
    "testing/listener": "server/test_listener",
    "wire/ngh2_session": "wire/test_server_machine",
    "wire/packed": "server/test_unpacking",
    "wire/web": "wire/test_http1",
    "server/message_codec": "server/test_connect",
    "server/web_output": "server/test_grpc_web",
    "server/cors": "server/test_web",
    "wire/statuses": "wire/test_framing",
}
"""Modules that are tested through others."""


def is_of_a_module(file: Path) -> bool:
    """Whether its name is a module's of its room, or that and an aspect: `test_<module>_<aspect>.py`."""
    folder = file.parent.relative_to(TESTS).as_posix()
    words = file.stem.removeprefix("test_").split("_")
    return any(f"{folder}/{'_'.join(words[:count])}" in FILES for count in range(1, len(words) + 1))


# One test of all files, not one of each: hundreds of tests that take no time cost seconds for being tests.
def test_a_test_file_stands_where_its_module_does() -> None:
    beyond = {file.relative_to(TESTS).with_suffix("").as_posix() for file in ROOM_TESTS if not is_of_a_module(file)}
    assert beyond <= BEYOND_MODULES


def has_tests(name: str) -> bool:
    """Whether a module has a file of tests of its own."""
    folder, _, module = name.rpartition("/")
    return any((TESTS / folder).glob(f"test_{module}.py")) or any((TESTS / folder).glob(f"test_{module}_*.py"))


def test_a_module_has_tests_or_is_tested_through_another() -> None:
    modules = {name for name in FILES if "/" in name and name not in SEAMS and not is_text(FILES[name])}
    assert {name for name in modules if not has_tests(name)} == modules & TESTED_BY.keys()
    through = {name: TESTED_BY[name] for name in modules & TESTED_BY.keys()}
    assert {name: other for name, other in through.items() if not (TESTS / f"{other}.py").exists()} == {}


DEADLINES_S = 2.0
"""A shorter one is to pass, or is what a test is about."""
BOUND_ROOMS = (*ROOMS, "house")
"""Folders whose waits have long bounds."""
OTHER_BOUNDS = {
    "client/test_call_status.py": "the deadline is what passes, by a clock that is set",
    "lane/test_routing.py": "the deadline is what its service tells",
    "shard/offload/parts.py": "a thread that hangs, until it is left behind",
    "shard/offload/test_pool.py": "a thread that hangs, until it is left behind",
    "state/test_store_thread.py": "a thread that hangs, until it is left behind",
    "supervisor/test_leased_lives.py": "what ends at once, and not after the seconds that a drain may take",
    "telemetry/sinks/test_prometheus.py": "a question asked again and again; a process that is killed then",
}

NUMBER_AS_BOUND = re.compile(r"timeout[\s(=]+[\d.]|\bwait[\s(]+[\d.]|\bwait_for\b")
"""How a bound is written: of a file without it, no call need be looked at."""


def bounds_of(tree: ast.AST) -> Iterator[float]:
    """The seconds, written as numbers, after which a wait of a test fails: of `timeout=…`, `asyncio.timeout(…)`,
    `wait_for(…, …)`, `settimeout(…)` and the `wait(…)` of processes, threads' events and barriers."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            words = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
            name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            words += call.args[1:2] if name == "wait_for" else []
            is_bound = name in ("timeout", "settimeout", "wait") and len(call.args) == 1
            words += call.args if is_bound and "under_way" not in ast.unparse(call.func) else []
            yield from (w.value for w in words if isinstance(w, ast.Constant) and isinstance(w.value, (int, float)))


@pytest.mark.parametrize("room", BOUND_ROOMS)
def test_no_wait_is_so_short_that_a_starved_machine_misses_it(room: str) -> None:
    sources = {file.relative_to(TESTS).as_posix(): file.read_text() for file in (TESTS / room).rglob("*.py")}
    short = {
        name: bounds
        for name, source in sources.items()
        if NUMBER_AS_BOUND.search(source)
        and (bounds := [s for s in bounds_of(ast.parse(source)) if DEADLINES_S <= s < LEAST_BOUND_S])
    }
    assert short.keys() == {name for name in OTHER_BOUNDS if name.startswith(f"{room}/")}, short


def test_no_property_fails_by_the_speed_of_the_machine() -> None:
    profile = hypothesis.settings.get_profile(hypothesis.settings.get_current_profile_name())
    assert profile.deadline is None
    assert hypothesis.HealthCheck.too_slow in profile.suppress_health_check
