import pytest
from hypothesis import given
from hypothesis import strategies as st

from ig import filters
from ig.container import HOST
from ig.errors import UsageError
from ig.gadget import Column, Kind
from ig.gadgets.snapshot_socket import GADGET as SNAPSHOT
from ig.sockets.proc import STATES, UDP_STATES
from ig.sockets.published import PUBLISHED
from tests.unit.output_samples import COLUMNS, WEB, WHEN, events

BATCH = events(
    {"comm": "wget", "pid": 7, "latency": 0, "type": "a,b", "sport": 100, "dport": 80},
    {
        "comm": "nginx",
        "pid": 70,
        "latency": 5_000_000,
        "shared": True,
        "dport": 443,
        "error": "EIO",
    },
    {
        "comm": "python3",
        "pid": 700,
        "latency": 50_000_000,
        "timestamp": WHEN + 10**9,
        "dport": 8080,
    },
    owners=[WEB, HOST, WEB],
)


def kept(*expressions: str) -> list[int]:
    predicate = filters.parse(expressions, COLUMNS)
    assert predicate
    return [place for place, keep in enumerate(predicate(BATCH)) if keep]


@pytest.mark.parametrize(
    ("expression", "places"),
    [
        ("comm==wget", [0]),
        ("comm!=wget", [1, 2]),
        ("comm<p", [1]),
        ("comm>=python3", [0, 2]),
        ("comm~^(wget|nginx)$", [0, 1]),
        ("comm!~n", [0]),
        ("comm:wget", [0]),
        ("comm:!wget", [1, 2]),
        ("comm:~^n", [1]),
        ("comm:!~^n", [0, 2]),
        ("error:", [0, 2]),
        ("error==", [0, 2]),
        ("error!=", [1]),
        ("pid>7", [1, 2]),
        ("pid:>=70", [1, 2]),
        ("pid:<70", [0]),
        ("pid<=0x46", [0, 1]),
        ("pid==700", [2]),
        ("pid~^7.$", [1]),
        ("proc.pid==7", [0]),
        (" PID == 7 ", [0]),
        ("port:>=1024", [2]),
        ("dport==443", [1]),
        ("sport==100", [0]),
        ("dst.port==80", [0]),
        ("src:172.17.0.2:100", [0]),
        ("daddr==93.184.215.14", [0, 1, 2]),
        ("runtime.containerName==web", [0, 2]),
        ("container:!web", [1]),
        ("latency>10ms", [2]),
        ("latency>=5", [1, 2]),
        ("latency>49.9", [2]),
        ("latency_raw>=5000000", [1, 2]),
        ("latency_raw<50000000", [1]),
        ("latency<10ms", [1]),
        ("latency<=50ms", [1, 2]),
        ("latency==0", [0]),
        ("latency!=0s", [1, 2]),
        ("latency~ms$", [1, 2]),
        ("timestamp>2026-11-20T20:33:04.5Z", [2]),
        ("timestamp<2026-11-20T21:33:04.5+01:00", [0, 1]),
        ("timestamp==2026-11-20T20:33:04.123456789Z", [0, 1]),
        (f"timestamp_raw=={WHEN}", [0, 1]),
        ("shared==true", [1]),
        ("shared:!True", [0, 2]),
        ("shared~^f", [0, 2]),
        ("type==a\\,b", [0]),
        ("comm~^.{5\\,7}$", [1, 2]),
        ("comm!=wget,pid<700", [1]),
        ("comm=wget", [0]),
        ("comm=wget,nginx", [0, 1]),
        ("comm:wget,nginx,pid>7", [1]),
        ("comm!=wget,nginx", [2]),
        ("pid==7,700,0x46", [0, 1, 2]),
        ("comm==wget || pid==700", [0, 2]),
        ("comm==wget,pid==9||comm==nginx,pid==70||pid==700", [1, 2]),
        ("daddr==93.184.0.0/16", [0, 1, 2]),
        ("daddr!=10.0.0.0/8,93.184.216.0/24", [0, 1, 2]),
        ("daddr=10.0.0.0/8,93.184.215.14", [0, 1, 2]),
        ("daddr==2001:db8::/32", []),
        ("uid==root", [0, 1, 2]),
        ("gid!=root", []),
        ("port==http,https", [0, 1]),
    ],
)
def test_events_are_kept_for_which_it_holds(expression: str, places: list[int]) -> None:
    assert kept(expression) == places


def test_repeated_expressions_must_all_hold() -> None:
    assert kept("pid>=7", "pid<700,comm!=nginx", "shared==false") == [0]


def test_filter_of_no_expressions_is_none() -> None:
    assert filters.parse([], COLUMNS) is None


def test_columns_own_name_comes_before_a_shorthand() -> None:
    columns = (*COLUMNS, Column("port", kind=Kind.INTEGER, read=lambda batch: [1] * len(batch)))
    predicate = filters.parse(["port==1"], columns)
    assert predicate
    assert list(predicate(BATCH)) == [True, True, True]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "(?s)''.*empty.*comm==wget"),
        ("comm==wget,", "empty"),
        ("comm", "(?s)'comm'.*operator"),
        ("comm~wget,nginx", "(?s)'nginx'.*operator"),
        ("daddr==172.18.0.0/33", "(?s)Invalid network '172.18.0.0/33'.*172.18.0.0/16"),
        ("uid==nobody-there", "Unknown user 'nobody-there'"),
        ("port==no-such-service", "(?s)Invalid port 'no-such-service'.*http"),
        ("comm==wget || ", "empty"),
        ("==wget", "operator"),
        ("com==wget", "(?s)'com'.*Known columns: timestamp,.*mean 'comm'"),
        ("pid==seven", "(?s)'seven'.*pid.*integer"),
        ("pid:>=", "(?s)''.*integer"),
        ("pid==1.5", "integer"),
        ("pid==" + "9" * 5000, "integer"),
        ("latency>10 parsecs", "(?s)10 parsecs.*1h30m"),
        ("timestamp>yesterday", "(?s)'yesterday'.*2026-11-20T20:33:04Z"),
        ("timestamp>2026-13-40T99:99:99Z", "Invalid time"),
        ("shared==maybe", "(?s)'maybe'.*true or false"),
        ("shared>true", "(?s)no order.*=="),
        ("comm~[", "(?s)'\\['.*regular expression"),
        ("comm:~(", "regular expression"),
    ],
)
def test_filter_that_is_invalid_is_refused_with_what_is_valid(
    expression: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        filters.parse([expression], COLUMNS)


def test_value_that_a_column_never_has_is_refused_with_those_that_it_has() -> None:
    columns = (Column("outcome", values=("established", "timed-out")),)
    for expression in ("outcome==Timed-Out", "outcome:!timed-out-", "outcome!=nothing"):
        with pytest.raises(UsageError, match="Known values: established, timed-out"):
            filters.parse([expression], columns)
    with pytest.raises(UsageError, match="mean 'timed-out'"):
        filters.parse(["outcome==TIMEDOUT"], columns)
    assert filters.parse(["outcome==timed-out", "outcome!=", "outcome~^time"], columns)


def test_states_of_sockets_are_those_of_the_kernel() -> None:
    (column,) = (each for each in SNAPSHOT.columns if each.name == "state")
    assert column.values == (*STATES.values(), *UDP_STATES.values(), PUBLISHED)


@pytest.mark.parametrize("pattern", ["(a+)+$", "^(a|a)*$", "(.*)*b"])
def test_regular_expression_that_takes_too_long_is_an_error(pattern: str) -> None:
    predicate = filters.parse([f"comm~{pattern}"], COLUMNS)
    assert predicate
    with pytest.raises(UsageError, match="takes too long"):
        predicate(events({"comm": "a" * 64 + "!"}))


@given(
    st.text()
    | st.builds(
        "".join,
        st.tuples(
            st.sampled_from([column.name for column in COLUMNS]),
            st.sampled_from(
                ["==", "!=", "<", "<=", ">", ">=", "~", "!~", ":", ":!", ":>", ":~", "="]
            ),
            st.text(max_size=20),
        ),
    )
)
def test_filter_of_any_text_is_one_or_a_usage_error(expression: str) -> None:
    message = ""
    try:
        predicate = filters.parse([expression], COLUMNS)
        assert predicate
        assert len(predicate(BATCH)) == len(BATCH)
    except UsageError as error:
        message = str(error)
    assert len(message) < 1000
