"""What a drain waits for is named by its methods, those with the most calls first."""

from onelane.shard.drain_log import DrainLog


def test_methods_with_the_most_calls_are_named_and_the_rest_is_counted() -> None:
    methods = [f"/a.v1.A/{name}" for name in "BBBCCDEFGH"]
    drain_log = DrainLog("a-0", lambda: methods, lambda: len(methods))
    assert drain_log.described() == "a.v1.A/B=3,a.v1.A/C=2,a.v1.A/D=1,a.v1.A/E=1,a.v1.A/F=1,others=2"
    methods.clear()
    assert drain_log.described() == "-"
