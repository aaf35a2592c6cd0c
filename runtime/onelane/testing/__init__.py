"""What ships for tests of services and plugs: a clock that is moved by hand, a listener without sockets."""
