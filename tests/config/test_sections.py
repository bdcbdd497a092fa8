import pytest

from rolemesh.config import tree
from rolemesh.config.sections import arguments_at, build_listen, value_at, with_values
from rolemesh.config.settings import Limits, Listen, NodePolicy
from tests.config.conftest import Parse


def test_given_values_take_the_place_of_defaults_and_have_their_type(parse: Parse) -> None:
    limits = with_values(Limits(), parse("{drain_s: 5, max_queue: 3.0}"))
    assert limits == Limits(drain_s=5.0, max_queue=3)
    assert isinstance(limits.drain_s, float)
    assert isinstance(limits.max_queue, int)
    assert with_values(NodePolicy(), parse("allow_cpu: false")) == NodePolicy(allow_cpu=False)


def test_without_values_the_defaults_stay() -> None:
    assert with_values(Limits(drain_s=1.0), None) == Limits(drain_s=1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1", Listen(port=99)),
        ("listen: {port: 80}", Listen(port=80)),
        ("listen: {host: '::1'}", Listen(host=("::1",), port=99)),
        ("listen: {host: ['::1', h], port: 1}", Listen(host=("::1", "h"), port=1)),
    ],
)
def test_listen_has_one_host_or_several(parse: Parse, text: str, expected: Listen) -> None:
    assert build_listen(parse(text), 99) == expected


def test_values_are_found_by_path_or_have_the_default(parse: Parse) -> None:
    root = parse("a: {b: [1]}")
    assert value_at(root, ("a", "b"), None) == [1]
    assert value_at(root, ("a", "c"), "x") == "x"
    assert value_at(tree.empty("f"), ("a",), 5) == 5


def test_arguments_are_strings_also_where_numbers_were_written(parse: Parse) -> None:
    assert arguments_at(parse("args: [-ngl, 99, --temp, 0.7, on]"), ("args",)) == (
        "-ngl", "99", "--temp", "0.7", "on"
    )  # fmt: skip
    assert arguments_at(parse("a: 1"), ("args",)) == ()
