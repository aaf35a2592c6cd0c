"""A configuration file is read with its environment, and all its faults are reported at once, with key and line."""

import traceback
from pathlib import Path

import pytest
from onelane import config
from onelane.errors import BadConfig

GOOD = """
[apps.lobby]
services = ["services.arena.lobby:Lobby"]
listen = "127.0.0.1:50051"
shards = 2
[apps.profile]
services = ["services.arena.profile:Profile"]
listen = "127.0.0.1:50061"
"""


def load(tmp_path: Path, text: str, **environment: str) -> config.Config:
    (tmp_path / "onelane.toml").write_text(text)
    return config.load(tmp_path / "onelane.toml", environment)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    read = load(tmp_path, GOOD)
    assert read.apps["lobby"].shards == 2
    assert read.apps["profile"].shard_count >= 1


def test_all_faults_are_reported_at_once_with_key_and_line(tmp_path: Path) -> None:
    text = """
[apps.lobby]
services = ["not a plug"]
listen = "localhost:99999"
shard = 2
[apps.profile]
listen = "127.0.0.1:50061"
shards = 0
"""
    with pytest.raises(BadConfig) as caught:
        load(tmp_path, text)
    faults = "\n".join(caught.value.faults)
    assert "line 3: apps.lobby.services.0: expected package.module:Class, seen 'not a plug'" in faults
    assert "line 4: apps.lobby.listen: expected ip:port" in faults
    assert "line 5: apps.lobby.shard: is not a setting; did you mean 'shards'?" in faults
    assert "line 6: apps.profile.services: is missing" in faults
    assert "line 8: apps.profile.shards" in faults


def test_a_file_that_is_not_toml_is_reported_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"is not TOML: .*line 1"):
        load(tmp_path, "[apps\nx = 1")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="cannot be read: No such file"):
        config.load(tmp_path / "none.toml")


@pytest.mark.parametrize("text", ["apps = 5", '[apps]\nlobby = "none"', "apps = [1]"])
def test_a_value_where_a_table_belongs_is_reported_also_where_the_environment_overrules_one_in_it(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(BadConfig, match=r"line \d: apps"):
        load(tmp_path, text, ONELANE_APPS__LOBBY__SHARDS="5")


def test_variables_that_contradict_each_other_are_reported(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"apps\.lobby"):
        load(tmp_path, GOOD, ONELANE_APPS__LOBBY="5", ONELANE_APPS__LOBBY__SHARDS="5")


def test_the_environment_overrules_the_file(tmp_path: Path) -> None:
    read = load(tmp_path, GOOD, ONELANE_APPS__LOBBY__SHARDS="5", ONELANE_ADMIN="127.0.0.1:1")
    assert (read.apps["lobby"].shards, read.admin) == (5, "127.0.0.1:1")


def test_one_app_of_a_file_still_finds_the_others(tmp_path: Path) -> None:
    alone = load(tmp_path, GOOD).only("lobby")
    assert list(alone.apps) == ["lobby"]
    assert alone.peers["profile"] == "127.0.0.1:50061"
    with pytest.raises(BadConfig, match="it has \\['lobby', 'profile'\\]"):
        load(tmp_path, GOOD).only("nope")


def test_listening_on_all_addresses_needs_one_to_advertise(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="advertise must name"):
        load(tmp_path, GOOD.replace("127.0.0.1:50051", "0.0.0.0:50051"))


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ('advertise = "example.org"', "apps.lobby.advertise: expected an IP address that clients can reach"),
        ("pins = { hot = 7 }", r"pins \['hot'\]: expected the index of a shard, 0 to 1"),
        ("stall_s = 0.001", "apps.lobby.stall_s: expected 0, or seconds from 0.01 to 60, seen 0.001"),
        ("tail = { slowest = 0.7 }", "apps.lobby.tail.slowest: Input should be less than or equal to 0.5, seen 0.7"),
        ('turns = { "a.B/C" = "SOMETIMES" }', "apps.lobby.turns.a.B/C: Input should be 'KEYED' or 'FREE'"),
    ],
)
def test_a_setting_out_of_its_range_is_reported_with_the_expected_values(
    tmp_path: Path, setting: str, fault: str
) -> None:
    with pytest.raises(BadConfig, match=fault):
        load(tmp_path, GOOD.replace("shards = 2", f"shards = 2\n{setting}"))


def test_an_app_name_is_lower_case(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"app names \['Lobby'\]: expected lower-case letters, digits and dashes"):
        load(tmp_path, GOOD.replace("apps.lobby", "apps.Lobby"))


def test_reflection_is_served_on_loopback_alone_unless_set(tmp_path: Path) -> None:
    text = GOOD.replace("127.0.0.1:50051", "10.0.0.1:50051").replace("shards = 2", "shards = 2\nreflection = true")
    apps = load(tmp_path, text).apps
    assert (apps["lobby"].serves_reflection, apps["profile"].serves_reflection) == (True, True)
    apps = load(tmp_path, GOOD.replace("127.0.0.1:50051", "10.0.0.1:50051")).apps
    assert (apps["lobby"].serves_reflection, apps["profile"].serves_reflection) == (False, True)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[apps.x]\nconfig = { password = "swordfish" }', "apps.x.services: is missing"),
        ('[apps]\nx = [{ password = "swordfish" }]', "apps.x: Input should be a valid dictionary .*, seen a list"),
        (f'{GOOD}config = "swordfish"', "apps.profile.config: Input should be a valid dictionary, seen a text"),
        (f'admin_token = ["swordfish"]\n{GOOD}', "admin_token: Input should be a valid string, seen a list"),
        (f"admin_token = 70912345\n{GOOD}", "admin_token: Input should be a valid string, seen a number"),
        (f'peers.x = "redis://me:swordfish@x"\n{GOOD}', r"peers.x: target 'redis://…@x': expected host:port"),
        (f'{GOOD}pins.swordfish = 9\nconfig.password = "swordfish"', "apps.profile: pins "),
    ],
)
def test_a_fault_shows_no_table_and_nothing_that_may_be_secret(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(BadConfig, match=fault) as caught:
        load(tmp_path, text)
    shown = "".join(traceback.format_exception(caught.value)).replace("pins ['swordfish']", "")
    assert "swordfish" not in shown
    assert "70912345" not in shown


def test_a_variable_that_contradicts_the_file_shows_no_value_of_it(tmp_path: Path) -> None:
    with pytest.raises(BadConfig) as caught:
        load(tmp_path, f'{GOOD}config.db = "swordfish"', ONELANE_APPS__PROFILE__CONFIG__DB__USER="me")
    assert (
        "ONELANE_APPS__PROFILE__CONFIG__DB__USER sets apps.profile.config.db.user, but db is a text, and no table"
        in str(caught.value)
    )
    assert "swordfish" not in str(caught.value)


def test_a_configuration_shows_its_token_in_no_repr(tmp_path: Path) -> None:
    assert "swordfish" not in repr(load(tmp_path, f'admin_token = "swordfish"\n{GOOD}'))


CLUSTER = """
[cluster]
name = "arena"
etcd = ["https://10.0.0.5:2379"]
advertise = "10.0.0.11"
tls = { ca = "ca.pem", cert = "a.pem", key = "a.key" }
"""


def test_a_cluster_is_read_and_its_variables_override_it(tmp_path: Path) -> None:
    cluster = load(tmp_path, GOOD + CLUSTER, ONELANE_CLUSTER__ETCD="https://a:1,https://b:2").cluster
    assert cluster is not None
    assert (cluster.name, cluster.etcd, cluster.lease_s) == ("arena", ("https://a:1", "https://b:2"), 5)
    assert cluster.tls is not None
    assert cluster.tls.cert == "a.pem"
    assert load(tmp_path, GOOD).cluster is None


def test_faults_of_a_cluster_are_told_with_their_key_and_without_its_password(tmp_path: Path) -> None:
    text = CLUSTER.replace("arena", "Arena") + 'etcd_password = "hunter2"\nmashine = "a"\n'
    with pytest.raises(BadConfig) as caught:
        load(tmp_path, GOOD + text)
    reasons = "\n".join(caught.value.faults)
    assert "cluster.name" in reasons
    assert "expected 1 to 63 of a-z" in reasons
    assert "cluster.mashine" in reasons
    assert "machine" in reasons.replace("mashine", "")
    assert "hunter2" not in reasons
    with pytest.raises(BadConfig) as caught:
        load(tmp_path, GOOD + CLUSTER.replace("//10.", "//root:hunter2@10."))
    assert "etcd_user and etcd_password are for these" in str(caught.value.faults)
    assert "hunter2" not in str(caught.value.faults)


def test_variables_of_a_cluster_that_look_like_numbers_are_texts(tmp_path: Path) -> None:
    user = {"ONELANE_CLUSTER__ETCD_USER": "7", "ONELANE_CLUSTER__ETCD_PASSWORD": "123456"}
    read = load(tmp_path, GOOD + CLUSTER, ONELANE_CLUSTER__MACHINE="1e3", ONELANE_CLUSTER__LEASE_S="9", **user).cluster
    assert read is not None
    assert (read.machine, read.lease_s, read.etcd_user, read.etcd_password.text) == ("1e3", 9, "7", "123456")


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("advertise", "cluster.advertise: is missing; expected the address or name by which the other machines"),
        ("name", "cluster.name: is missing; expected a name that all machines of this cluster have"),
        ("etcd", r"cluster.etcd: is missing; expected the client addresses of etcd, such as \["),
        ("tls", r"\[cluster.tls\] is missing: links between machines are mutual TLS \(or insecure = true\)"),
    ],
)
def test_what_a_cluster_lacks_is_told_with_what_it_needs(tmp_path: Path, setting: str, fault: str) -> None:
    lines = [line for line in CLUSTER.splitlines() if not line.startswith(f"{setting} =")]
    with pytest.raises(BadConfig, match=fault):
        load(tmp_path, GOOD + "\n".join(lines))


def test_a_lease_that_is_too_short_is_told_with_the_shortest(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"cluster.lease_s: Input should be greater than or equal to 2, seen 1"):
        load(tmp_path, GOOD + CLUSTER, ONELANE_CLUSTER__LEASE_S="1")


def test_the_port_of_xds_is_no_other_one_of_the_file(tmp_path: Path) -> None:
    read = load(tmp_path, GOOD + CLUSTER, ONELANE_CLUSTER__XDS="0.0.0.0:50061")
    with pytest.raises(BadConfig, match=r"apps.profile.listen: 127.0.0.1:50061 is cluster.xds already"):
        read.check_addresses()


def test_the_password_of_etcd_may_be_in_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("swordfish\n")
    by_file = GOOD + CLUSTER.replace("[cluster]", f'[cluster]\netcd_user = "u"\netcd_password_file = "{secret}"')
    read = load(tmp_path, by_file).cluster
    assert read is not None
    assert read.etcd_password.text == "swordfish"
    for name, value in (("ETCD_PASSWORD", "other"), ("ETCD_PASSWORD_FILE", str(tmp_path / "other"))):
        (tmp_path / "other").write_text("other")
        read = load(tmp_path, by_file, **{f"ONELANE_CLUSTER__{name}": value}).cluster
        assert read is not None
        assert read.etcd_password.text == "other"
    both = by_file.replace("[cluster]", '[cluster]\netcd_password = "p"')
    with pytest.raises(BadConfig, match=r"cluster.etcd_password and etcd_password_file are both set, expected one"):
        load(tmp_path, both)
    secret.unlink()
    with pytest.raises(BadConfig, match=r"cluster.etcd_password_file: .*/password cannot be read: No such file"):
        load(tmp_path, by_file)


def test_an_app_on_all_addresses_is_advertised_as_its_machine_is(tmp_path: Path) -> None:
    wild = GOOD.replace("127.0.0.1:50051", "0.0.0.0:50051").replace("127.0.0.1:50061", "[::]:50061")
    apps = load(tmp_path, wild + CLUSTER).apps
    assert [app.advertise for app in apps.values()] == ["10.0.0.11"] * 2
    apps = load(tmp_path, wild + CLUSTER, ONELANE_APPS__LOBBY__ADVERTISE="192.0.2.1").apps
    assert [app.advertise for app in apps.values()] == ["192.0.2.1", "10.0.0.11"]
    assert load(tmp_path, GOOD + CLUSTER).apps["lobby"].advertise is None
    with pytest.raises(BadConfig, match="advertise must name the IP address"):
        load(tmp_path, wild + CLUSTER, ONELANE_CLUSTER__ADVERTISE="a.example")
