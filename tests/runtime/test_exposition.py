from rolemesh.runtime.exposition import Family, Sample, exposition, histogram, labelled


def text(*families: Family) -> str:
    return "".join(exposition(families))


def test_a_family_has_its_help_its_type_and_its_samples() -> None:
    family = Family(
        name="requests_total",
        kind="counter",
        help="Requests.",
        samples=[labelled(3, {"alias": "coder", "status": "2xx"}), Sample(10**15), Sample(0.25)],
    )
    assert text(family).splitlines() == [
        "# HELP requests_total Requests.",
        "# TYPE requests_total counter",
        'requests_total{alias="coder",status="2xx"} 3',
        "requests_total 1000000000000000",
        "requests_total 0.25",
    ]


def test_what_has_no_samples_is_not_mentioned() -> None:
    assert text(Family(name="a", kind="gauge", help="b", samples=())) == ""


def test_a_label_cannot_break_out() -> None:
    family = Family(name="a", kind="gauge", help="b", samples=[labelled(1, {"x": 'a"}\\\n1'})])
    assert text(family).splitlines()[-1] == 'a{x="a\\"}\\\\\\n1"} 1'


def test_a_histogram_counts_what_is_at_most_as_large() -> None:
    samples = histogram({"alias": "a"}, (0.5, 1.0), (2, 0, 3), 12.5)
    family = Family(name="t_seconds", kind="histogram", help="Time.", samples=samples)
    assert text(family).splitlines()[2:] == [
        't_seconds_bucket{alias="a",le="0.5"} 2',
        't_seconds_bucket{alias="a",le="1"} 2',
        't_seconds_bucket{alias="a",le="+Inf"} 5',
        't_seconds_sum{alias="a"} 12.5',
        't_seconds_count{alias="a"} 5',
    ]
