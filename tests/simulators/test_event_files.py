import gzip
import math
import time
import tracemalloc

import numpy as np
import pytest
import torch

from sbi_core import InputError
from sbi_core.simulators import ContactInteraction, WeightedEvents, read_lhe, write_lhe

HEAD = """<LesHouchesEvents version="3.0">
<header>
<!--
<init> is explained here, and so is <event>: this is a comment
-->
<MG5ProcCard>
generate p p > mu+ mu-   # with a < b & c
</MG5ProcCard>
<initrwgt>
<weightgroup name='mg_reweighting' weight_name_strategy='includeIdInWeightName'>
<weight id='sm'>set param_card dim6 1 0.0</weight>
<weight id='plus' MUF="1.0">set param_card dim6 1 1.0 # orig: 0.0
</weight>
</weightgroup>
</initrwgt>
</header>
<init>
2212 2212 6.500000e+03 6.500000e+03 0 0 247000 247000 -4 1
{cross_section} 1.0e-02 4.0e+00 1
<generator name='MadGraph5_aMC@NLO' version='2.9.3'>please cite 1405.0301 </generator>
</init>
"""
EVENT = """<event{attributes}>
 4      1 {own} 9.11880000e+01 7.81860900e-03 1.18000000e-01
       -1 -1    0    0    0  501 +0.0000000000e+00 -0.0000000000e+00 -3.0000000000e+02 3.0e+02 0.0e+00 0.0e+00 1.0e+00
        1 -1    0    0  501    0 +0.0000000000e+00 +0.0000000000e+00 +1.0000000000e+02 1.0e+02 0.0e+00 0.0e+00 -1.0e+00
       13  1    1    2    0    0 +3.0000000000e+01 +4.0000000000e+01 {pz} 5.0e+01 1.056e-01 0.0e+00 1.0e+00
      -13  1    1    2    0    0 -3.0000000000e+01 -4.0000000000e+01 -2.0000000e+02 3.5e+02 1.056e-01 0.0e+00 -1.0e+00
# a comment of the generator 1 2 3
<mgrwt>
<rscale>  0 0.91188000E+02</rscale>
<pdfrwt beam="1">  1       -1 0.46153846E-01 0.91188000E+02</pdfrwt>
</mgrwt>
<rwgt>
<wgt id='sm'> {sm} </wgt>
<wgt id="plus"> {plus} </wgt>
</rwgt>
</event>
"""
BENCHMARKS = {"sm": [0.0], "plus": [1.0]}
EVENTS = [(1.0, 1.5, 2.0), (3.0, 2.5, 0.5), (2.0, 2.0, 1.0)]
"""Own weight, and those at both benchmarks."""


def text_of(events=EVENTS, cross_section=2.0, end="</LesHouchesEvents>\n", attributes="", number="{:+.8e}", pz="0.0"):
    rows = [[number.format(value) for value in row] for row in events]
    body = [EVENT.format(own=a, sm=b, plus=c, attributes=attributes, pz=pz) for a, b, c in rows]
    return HEAD.format(cross_section=f"{cross_section:.8e}") + "".join(body) + end


def written(tmp_path, text, name="events.lhe"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def transverse(particles):
    (minus,), (plus,) = particles.outgoing(13), particles.outgoing(-13)
    return [math.hypot(*minus[:2]), plus[3]]


@pytest.mark.parametrize("name", ["events.lhe", "events.lhe.gz", "zipped_without_saying.lhe.gz"])
@pytest.mark.parametrize("attributes", ["", ' npLO=" 0 " npNLO=" -1 "'])
def test_lhe_file_is_read(tmp_path, name, attributes):
    path = written(tmp_path, text_of(attributes=attributes), name)
    if name.startswith("zipped"):
        path = path.rename(tmp_path / "events.lhe")
    found = read_lhe(path, transverse, BENCHMARKS)
    assert found.x.tolist() == [[50.0, 350.0]] * 3 and found.read == len(found) == 3
    assert torch.allclose(found.weights, torch.tensor([[1.5, 2.0], [2.5, 0.5], [2.0, 1.0]]).double() / 3)
    assert found.benchmarks.tolist() == [[0.0], [1.0]] and found.names == ("sm", "plus")
    assert found.cross_section == (2.0, 0.01) and found.normalisation == "average"


def test_particles_have_their_columns(tmp_path):
    seen = []
    read_lhe(written(tmp_path, text_of(pz="-5.5")), lambda particles: seen.append(particles) or [0.0], BENCHMARKS)
    first = seen[0]
    assert len(first) == 4 and first.id.tolist() == [-1, 1, 13, -13] and first.status.tolist() == [-1, -1, 1, 1]
    assert first.momentum[2].tolist() == [30.0, 40.0, -5.5, 50.0] and first.table[0, 12] == 1.0
    assert first.outgoing(13, -13).shape == (2, 4) and first.outgoing(1).shape == (0, 4)
    assert first.table[1, 4:6].tolist() == [501, 0] and first.table[3, 2:4].tolist() == [1, 2]


def test_own_weight_is_a_benchmark_too(tmp_path):
    found = read_lhe(written(tmp_path, text_of()), transverse, {"plus": [1.0, 0.0], "XWGTUP": [0.0, 0.0]})
    assert torch.allclose(found.weights[:, 1] * 3, torch.tensor([1.0, 3.0, 2.0]).double())
    assert found.benchmarks.tolist() == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("events", "cross_section", "rule", "factor"),
    [
        (EVENTS, 2.0, "average", 1 / 3),
        (EVENTS, 6.0, "sum", 1.0),
        ([(1.0, 1.0, 2.0)] * 8 + [(-1.0, -1.0, -2.0)] * 2, 42.0, "unit", 7.0),
    ],
)
def test_weights_become_cross_sections(tmp_path, events, cross_section, rule, factor):
    path = written(tmp_path, text_of(events, cross_section))
    for way in ("auto", rule):
        found = read_lhe(path, transverse, BENCHMARKS, normalisation=way)
        assert found.normalisation == rule
        assert torch.allclose(found.weights, factor * torch.tensor(events).double()[:, 1:], rtol=1e-9)


@pytest.mark.parametrize("cross_section", [40.0, 0.0, -1.0, math.nan])
def test_weights_that_disagree_with_the_head_are_refused(tmp_path, cross_section):
    path = written(tmp_path, text_of(EVENTS * 60, cross_section))
    with pytest.raises(InputError, match=r"180 weights sum to 360, on average 2, .* Say which it is: normalisation="):
        read_lhe(path, transverse, BENCHMARKS)
    assert read_lhe(path, transverse, BENCHMARKS, normalisation="sum").weights[0, 0] == 1.5
    if not cross_section > 0:
        with pytest.raises(InputError, match="which normalisation='unit' needs"):
            read_lhe(path, transverse, BENCHMARKS, normalisation="unit")


def test_events_that_are_not_selected_lower_the_cross_section(tmp_path):
    """The mean weight is over all events; what is left sums to the fiducial cross-section."""
    kept = iter([True, False, True])
    path = written(tmp_path, text_of())
    found = read_lhe(path, lambda particles: [1.0] if next(kept) else None, BENCHMARKS)
    assert found.read == 3 and len(found) == 2
    assert torch.allclose(found.weights.sum(0), torch.tensor([3.5, 3.0]).double() / 3)
    with pytest.raises(InputError, match="of 3 events none was selected"):
        read_lhe(path, lambda particles: None, BENCHMARKS)


def test_fortran_numbers(tmp_path):
    text = text_of(number="{:+.8e}").replace("e+00 7.81860900e-03", "D+00 7.81860900d-03")
    text = text.replace("<wgt id='sm'> +1.50000000e+00", "<wgt id='sm'> +1.50000000D+00").replace(
        "+1.0000000000e+02", "1.D+02"
    )
    assert "D+00" in text and "1.D+02" in text
    found = read_lhe(written(tmp_path, text), transverse, BENCHMARKS)
    assert torch.allclose(found.weights[0], torch.tensor([0.5, 2 / 3]).double())


def test_weights_in_the_order_of_the_head(tmp_path):
    """The compressed form of version 3: <weights> without ids."""
    text = text_of()
    for _, sm, plus in EVENTS:
        tags = f"<rwgt>\n<wgt id='sm'> {sm:+.8e} </wgt>\n<wgt id=\"plus\"> {plus:+.8e} </wgt>\n</rwgt>"
        assert tags in text
        text = text.replace(tags, f"<weights> {sm:.8e}\n {plus:.8e} </weights>")
    found = read_lhe(written(tmp_path, text), transverse, BENCHMARKS)
    assert torch.allclose(found.weights[1], torch.tensor([2.5, 0.5]).double() / 3)
    with pytest.raises(InputError, match="2 <weights>, but the head declares 1"):
        read_lhe(written(tmp_path, text.replace("<weight id='sm'>", "<other>")), transverse, BENCHMARKS)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t[: t.rindex("</rwgt>")], "is cut off after line 67: no </event>"),
        (lambda t: t.replace("</LesHouchesEvents>", ""), "is cut off after line 70: no </LesHouchesEvents>"),
        (lambda t: t[: t.index("</init>")], "no </init>"),
        (lambda t: t.replace("<LesHouches", "<Lost"), "begins with '<LostEvents"),
        (lambda t: "", "begins with ''"),
        (lambda t: t.replace("id=\"plus\"", "id='pluss'", 1), "event 1 has no weight 'plus'; did you mean 'pluss'"),
        (lambda t: t.replace(" 4      1", " 5      1", 1), "an event of 5 particles has 58 numbers, expected 71"),
        (lambda t: t.replace("9.11880000e+01", "ninety", 1), "an event is not numbers"),
        (lambda t: t.replace("+1.50000000e+00 </wgt>", "much </wgt>"), "a weight is not numbers"),
        (lambda t: t.replace("-4 1\n", "-4 2\n"), "the init block has 14 numbers, expected 10 and 4 a process"),
        (lambda t: t.replace("-4 1\n", "-4 nan\n"), "the init block has 14 numbers, expected 10 and 4 a process"),
        (lambda t: t.replace(" 4      1", " inf      1", 1), "of inf particles has 58 numbers, expected 6 and"),
        (lambda t: t.replace(" 4      1", " -4      1", 1), "an event of -4 particles has 58 numbers"),
        (lambda t: t.replace("+1.50000000e+00 </wgt>", "nan </wgt>"), "weight 'sm' is nan, expected one finite number"),
        (lambda t: t.replace(" 4      1 +1.0", " 4      1 inf +1.0", 1).replace("inf +1.00000000e+00", "inf"),
         "weight 'XWGTUP' is inf, expected one finite number"),
        (lambda t: t.replace('<wgt id="plus">', "<wgt id='sm'>", 1), "weight 'sm' is 2, and before that 1.5"),
    ],
)  # fmt: skip
def test_broken_lhe_files_are_refused(tmp_path, change, text):
    with pytest.raises(InputError, match=text):
        read_lhe(written(tmp_path, change(text_of())), transverse, BENCHMARKS)


def test_cut_off_gzip_is_refused(tmp_path):
    path = written(tmp_path, text_of(EVENTS * 200), "events.lhe.gz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="is cut off or damaged after line"):
        read_lhe(path, transverse, BENCHMARKS)


@pytest.mark.parametrize("where", ["first", "later"])
def test_entities_are_refused_at_once(tmp_path, where):
    """A billion laughs, 10^9 copies of one word if they were expanded."""
    entities = ['<!ENTITY a0 "ha">'] + [f'<!ENTITY a{k} "{f"&a{k - 1};" * 10}">' for k in range(1, 10)]
    bomb = "<!DOCTYPE bomb [\n" + "\n".join(entities) + "\n]>\n"
    head, _, rest = text_of().partition("<header>\n")
    text = '<?xml version="1.0"?>\n' + bomb + head + rest if where == "first" else head + "<header>\n&a9;" + bomb + rest
    start = time.perf_counter()
    with pytest.raises(InputError, match="declares entities, which event files have no use for"):
        read_lhe(written(tmp_path, text), transverse, BENCHMARKS)
    assert time.perf_counter() - start < 1


def test_external_entities_are_not_fetched(tmp_path):
    """Without a declaration, references stay what they are: text."""
    secret = tmp_path / "secret"
    secret.write_text("13")
    text = text_of().replace("set param_card dim6 1 0.0", "&secret; &#49;")
    assert len(read_lhe(written(tmp_path, text), transverse, BENCHMARKS)) == 3


def test_endless_lines_are_refused(tmp_path):
    with pytest.raises(InputError, match="line 4 is longer than 1000000"):
        read_lhe(written(tmp_path, HEAD[: HEAD.index("<init>")] + "x" * 3_000_000), transverse, BENCHMARKS)


CRAFTED = {
    "names without end": "<weight " * 100_000,
    "names without an equal sign": "<weight id " + "id " * 300_000,
    "names that are not closed": "<weight id='x" * 70_000,
    "spaces": "<weight id" + " " * 900_000,
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_crafted_heads_cost_what_others_do(tmp_path, kind):
    """Lines of a megabyte, on which a pattern that backtracks takes from a minute to an hour."""
    text = text_of().replace("<weightgroup name", f"{CRAFTED[kind]}\n<weightgroup name")
    assert len(text) > 8e5 and len(read_lhe(written(tmp_path, text), transverse, BENCHMARKS)) == 3


@pytest.mark.parametrize(
    "what", ["<wgt ", "<wgt id='x", "<wgt id='x'>", "<wgt id='x'>1 </wgt ", "<weights>", "<weights "]
)
def test_crafted_events_cost_what_others_do(tmp_path, what):
    crafted = "\n".join([what * (900_000 // len(what))] * 3)
    text = text_of().replace("<mgrwt>", f"<mgrwt>\n{crafted}", 1)
    assert len(text) > 2.6e6 and len(read_lhe(written(tmp_path, text), transverse, BENCHMARKS)) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.replace("<mgrwt>", f"{'1 ' * 50_000}\n" * 200, 1), "before </event>, which no event"),
        (lambda t: t.replace("<generator", f"{'1 ' * 50_000}\n" * 200, 1), "before </init>, which no event"),
        (lambda t: t.replace("<weight id", "<weight id='name'>\n" * 1_000_000 + "<weight id", 1), "declare weights"),
    ],
)
def test_what_is_kept_is_bounded(tmp_path, change, said):
    """20 MB, of which no more than one event's share is ever in memory."""
    path = written(tmp_path, change(text_of()), "events.lhe.gz")
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"line \d+: more than 4000000 characters {said}"):
        read_lhe(path, transverse, BENCHMARKS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e7


def test_long_nonsense_makes_short_errors(tmp_path):
    long = "x" * 900_000
    for text in (
        text_of().replace("+1.50000000e+00 </wgt>", f"{long} </wgt>"),
        text_of().replace("<wgt id='sm'>", f"<wgt id='{long}'>"),
        text_of().replace("9.11880000e+01", long),
    ):
        with pytest.raises(InputError) as caught:
            read_lhe(written(tmp_path, text), transverse, BENCHMARKS)
        assert len(str(caught.value)) < 1000


def test_comments_end_where_they_end(tmp_path):
    """One at the very beginning, and two on a line of which the second goes on."""
    shown = "<!-- one --> <!-- two\n<event>\nnothing\n-->\n"
    for text in (
        text_of().replace("</header>\n", f"</header>\n{shown}"),
        f"<!-- as it was:\n<event>\n-->\n{text_of()}",
    ):
        assert len(read_lhe(written(tmp_path, text), transverse, BENCHMARKS)) == 3


def test_processes_add_up(tmp_path):
    """Two processes in one file: the head's cross-sections add, and so do their errors, in squares."""
    text = text_of().replace("-4 1\n", "-4 2\n").replace("4.0e+00 1\n", "4.0e+00 1\n0.5 1.0e-02 4.0e+00 2\n")
    found = read_lhe(written(tmp_path, text.replace("2.00000000e+00 1.0e-02", "1.5 1.0e-02")), transverse, BENCHMARKS)
    assert found.cross_section == pytest.approx((2.0, 0.01 * 2**0.5)) and found.normalisation == "average"


@pytest.mark.parametrize("name", ["nowhere.lhe", "."])
def test_files_that_are_not_there_are_told(tmp_path, name):
    with pytest.raises(InputError, match="cannot be read"):
        read_lhe(tmp_path / name, transverse, BENCHMARKS)


@pytest.mark.parametrize("numbers", [[math.nan], 1.0, "pt"])
def test_observables_that_are_no_numbers_are_refused(tmp_path, numbers):
    with pytest.raises(InputError, match="observables of event 1 are"):
        read_lhe(written(tmp_path, text_of()), lambda particles: numbers, BENCHMARKS)


def test_observables_of_changing_length_are_refused(tmp_path):
    lengths = iter([2, 3, 2])
    with pytest.raises(InputError, match=r"observables of event 2 are .* as many in every event"):
        read_lhe(written(tmp_path, text_of()), lambda particles: [1.0] * next(lengths), BENCHMARKS)


@pytest.mark.parametrize("benchmarks", [{}, {"sm": [0.0], "plus": [1.0, 0.0]}])
def test_benchmarks_of_different_length_are_refused(tmp_path, benchmarks):
    with pytest.raises(InputError, match="expected the same number of parameters"):
        read_lhe(written(tmp_path, text_of()), transverse, benchmarks)


def test_rules_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="normalisation = 'mean', expected 'auto'"):
        read_lhe(written(tmp_path, text_of()), transverse, BENCHMARKS, normalisation="mean")


def test_files_stream(tmp_path):
    """3000 events, 4 MB of text, in little more memory than their three numbers."""
    path = written(tmp_path, text_of(EVENTS[2:] * 3000), "events.lhe.gz")
    tracemalloc.start()
    found = read_lhe(path, lambda particles: [particles.momentum[0, 3]], BENCHMARKS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 3000 and peak < 1e6 < 4e6


PROCESS = ContactInteraction(["lq3", "eu"])


def from_lhe(particles):
    """ln(m / TeV), and the cosine to the pair's own motion."""
    (minus,), (plus,) = particles.outgoing(13), particles.outgoing(-13)
    total = minus + plus
    rapidity = np.arctanh([minus[2] / minus[3], plus[2] / plus[3]])
    return 0.5 * np.log(total[3] ** 2 - total[:3] @ total[:3]) - math.log(1000), np.tanh(
        (rapidity[0] - rapidity[1]) / 2 * np.sign(total[2])
    )


def test_file_written_is_read_back(tmp_path):
    """From the generator through a file to the simulator: the same cross-sections, the same polynomials."""
    made = PROCESS.generate(500, seed=1, negative=0.2)
    names = [f"benchmark_{k}" for k in range(6)]
    path = tmp_path / "made.lhe.gz"
    rate = float(PROCESS.rate(torch.zeros(2)))
    write_lhe(path, PROCESS.particles(made.latents, seed=1), made.weights, names, rate)
    found = read_lhe(path, from_lhe, dict(zip(names, made.benchmarks.tolist(), strict=True)))
    assert found.cross_section == pytest.approx((rate, 0.0)) and found.normalisation == "average"
    assert torch.allclose(found.weights, made.weights, rtol=1e-10)
    assert torch.allclose(found.x, made.latents[:, :2], atol=1e-6)
    made = PROCESS.generate(500, seed=1)
    events = WeightedEvents(made.x, made.weights, found.benchmarks, PROCESS.parameters)
    theta = torch.tensor([[0.3, -0.2]]).double()
    assert torch.allclose(events.rate(theta), PROCESS.weight(theta, made.latents).sum())
