"""No control character of a client's text reaches a terminal or a log."""

from onelane.core.printable import escaped, replaced

HOSTILE = "ü\tone\ntwo\r\x1b[2J\x9b\u2028\ud800"


def test_a_log_line_has_control_characters_as_python_writes_them() -> None:
    assert escaped(HOSTILE) == "ü\tone\\ntwo\\r\\x1b[2J\\x9b\\u2028\\ud800"


def test_a_terminal_gets_replacement_characters_of_one_column() -> None:
    assert replaced(HOSTILE) == "ü\tone\ntwo\ufffd\ufffd[2J\ufffd\ufffd\ufffd"
