"""The figures of the pages, made of the records: tables here, plots by `pictures`."""

import functools

import numpy as np

from benchmarks import markdown, records
from benchmarks.quality import accuracy, pictures
from benchmarks.quality.statistics import excess, interval
from benchmarks.quality.synthetic import KINDS, SCALES
from benchmarks.quality.variants import CODED, DEFAULT, FLOAT32, MOVED, RULES, TRAINED


def table(head, rows, record):
    """A table in Markdown, with numbers to the right, and where they are from."""
    return f"{markdown.table(head, rows)}\n\n{records.source(record)}"


# ------------------------------------------------------------------------------------ trainings


def _results(task):
    record = records.load(f"quality-{task}")
    return record, record["results"]["rules"]


def about(task):
    """What is trained, in a few words."""
    results = records.load(f"quality-{task}")["results"]
    return (
        f"{results['title']}, {results['parameters']:,} parameters, batches of "
        f"{results['batch_size']}, {results['steps']:,} steps, {results['seeds']} seeds"
    )


def _trained(rules):
    """The ways of a record, in their order."""
    return [way for way in TRAINED if way.name in rules["lion"]["ways"]]


def losses(task):
    """Held-out losses in float32, and how far the other ways end from them."""
    record, rules = _results(task)
    rows = []
    for way in _trained(rules):
        row = [way.name]
        for rule in rules.values():
            if way == FLOAT32:
                row.append(f"{np.mean(rule['ways'][way.name]['loss'][-1]):.4f}")
            else:
                row.append(str(interval(excess(rule["ways"], way.name))))
        rows.append(row)
    return table(["", *(RULES[name].title for name in rules)], rows, record)


def steps_apart(task):
    """How far single steps are from float32's, at the end of the run."""
    record, rules = _results(task)
    rows = []
    for way in _trained(rules):
        if way.codec is None:
            continue
        lion = rules["lion"]["ways"][way.name]
        row = [way.name, *(_percent(lion[x][-1]) for x in ("differs", "opposite"))]
        for name in ("lamb", "adamw"):
            row += [f"{x:.3g}" for x in rules[name]["ways"][way.name]["error"][-1]]
        rows.append(row)
    head = ["", "Lion, signs", "opposite"]
    for title in ("LAMB", "AdamW"):
        head += [f"{title}, median", "99 %", "worst"]
    return table(head, rows, record)


def undecided(task):
    """How many of the 8-bit ways but `linear` cannot be told from float32, in words."""
    _, rules = _results(task)
    ways = [way for way in _trained(rules) if way.codec not in (None, "linear")]
    intervals = [interval(excess(x["ways"], way.name)) for x in rules.values() for way in ways]
    return f"{sum(x.holds_zero for x in intervals)} of {len(intervals)}"


def one_loss(task, rule, name):
    """The distance of one way, in words."""
    _, rules = _results(task)
    return str(interval(excess(rules[rule]["ways"], name)))


def seed_noise(task, rule):
    """The standard deviation of the float32 loss over the seeds."""
    _, rules = _results(task)
    return f"{np.std(rules[rule]['ways'][FLOAT32.name]['loss'][-1], ddof=1):.4f}"


# ------------------------------------------------------------------------------------ synthetic


def scales():
    """Steps of Lion and AdamW for gradients of every scale."""
    record = records.load("quality-synthetic")
    rules = record["results"]["rules"]
    rows = []
    for way in CODED:
        row = [way.name]
        for rule, shown in (("lion", _percent), ("adamw", _three)):
            found = rules[rule][way.name]
            row += [shown(np.mean(found[f"log-normal, {x:g}"]["differs"])) for x in SCALES]
        rows.append(row)
    head = [""]
    for rule in ("Lion", "AdamW"):
        head += [f"{rule}, times {scale:g}" if scale == 1 else f"{scale:g}" for scale in SCALES]
    return table(head, rows, record)


def kinds(rule):
    """Steps of a rule for every kind of gradients; of Lion also the share of opposite signs."""
    record = records.load("quality-synthetic")
    found = record["results"]["rules"][rule]
    shown = _percent if rule == "lion" else _three
    rows = []
    for way in CODED:
        cases, row = found[way.name], [way.name]
        for kind in KINDS:
            case = cases[f"{kind}, 1"]
            row.append(shown(np.mean(case["differs"])))
            if rule == "lion":
                row[-1] += f" ({_percent(np.mean(case['opposite']))})"
        stopped, exact = (np.mean(x) for x in cases["stopping, 1"]["left"])
        row.append(shown(np.mean(cases["turning, 1"]["late"])))
        rows.append([*row, f"{stopped:.2g} ({exact:.1g})"])
    head = ["", *KINDS, "turning: those that turn", "stopping: momentum left (float32)"]
    return table(head, rows, record)


def one_kind(rule, way, kind, part):
    """How far the steps of a way are from float32's for a kind of gradients, in words."""
    case = records.load("quality-synthetic")["results"]["rules"][rule][way][f"{kind}, 1"]
    return (_percent if rule == "lion" else _three)(np.mean(case[part]))


def one_step(task, rule, way, part, place=None):
    """The same at the end of a training; of `error` at one of the quantiles."""
    found = _results(task)[1][rule]["ways"][way][part][-1]
    return _percent(found) if place is None else _three(found[place])


def _percent(x):
    return f"{100 * x:.2f} %"


def _three(x):
    return f"{x:.3g}"


# ------------------------------------------------------------------------------------- accuracy


def _accuracy(*path):
    found = records.load("accuracy")["results"]
    for part in path:
        found = found[part]
    return found


def bounds():
    """What single steps and short runs differ by, beside the bound of the test."""
    record = records.load("accuracy")
    signs, direction, drift = (record["results"][x] for x in ("signs", "direction", "drift"))
    course = record["results"]["course"]
    largest = max(map(abs, drift.values()))
    rows = [
        [
            "Lion, sign flips: share of the steps' signs that differ from 32-bit Lion, "
            "50 steps, i.i.d. gradients",
            _percent(signs["power"]["i.i.d."]), "0.6 %",
        ],
        [
            "the same, gradients with log-normal scales",
            _percent(signs["power"]["log-normal"]), "1.2 %",
        ],
        [
            "LAMB, error of the worst element of `m / (sqrt(v) + eps)` out of 65,536, "
            "log-normal scales with sigma 1 and 2",
            f"{direction['1']['worst']:.2g} and {direction['2']['worst']:.2g}", "0.25 and 3.0",
        ],
        [
            "drift of stored second moments: mean of log(v8 / v), 3,000 steps at b2 = 0.999",
            f"within {largest:.1g}", "0.05",
        ],
        [
            "length of a LAMB step, relative to learning rate times norm",
            f"1 to {record['results']['length']:g} (float32)", "1e-3",
        ],
        [
            "`lamb8bit` on a real model, 200 steps: distance from `optax.lamb`, relative to the "
            "distance travelled",
            f"{100 * course['lamb8bit']:.0f} % (another batch order: "
            f"{100 * course['other batches']:.0f} %)",
            "6 %",
        ],
    ]  # fmt: skip
    return table(["", "measured", "bound in the test"], rows, record)


_LEVELS = {
    "power": "`sign(k) * abs(k / 127) ** 3` and `(k / 255) ** 8`",
    "dynamic": "bitsandbytes' map: seven decades; contains 1 but not -1",
    "linear": "`k / 127` and `k / 255`",
}


def codecs():
    """The codecs, and the signs that each turns."""
    record = records.load("accuracy")
    rows = []
    for codec in accuracy.CODECS:
        signs = record["results"]["signs"][codec]
        name = f'`"{codec}"`' + (" (default)" if codec == "power" else "")
        rows.append([name, _LEVELS[codec], ", ".join(_percent(x) for x in signs.values())])
    head = [
        "codec", "levels of a first and of a second moment", "sign flips (i.i.d., log-normal)",
    ]  # fmt: skip
    return table(head, rows, record)


def later():
    """How many times as many signs differ after 2,000 steps as after 50."""
    found = records.load("quality-synthetic")["results"]["rules"]["lion"][DEFAULT.name]
    late = np.mean(found["log-normal, 1"]["differs"])
    return f"{late / _accuracy('signs', 'power', 'log-normal'):.1f}"


# ----------------------------------------------------------------------------- the demo's run


def _runs():
    return records.load("quality-demo")["results"]["runs"]


def demo():
    """The losses of `./dev train`."""
    first = _runs()[0]
    rows = [
        [f"`{name}`", f"{loss:.3f}", f"{first['bytes'][name]:.2f}"]
        for name, loss in first["losses"].items()
    ]
    return table(["", "held-out loss", "state bytes per parameter"], rows, _demo_record())


def demo_short():
    """The same for the README: a row for a family."""
    first = _runs()[0]
    rows = []
    for family in ("lion", "lamb", "adamw"):
        names = f"optax.{family}", f"{family}8bit"
        amounts = [f"{first['bytes'][x]:.2f}" for x in names]
        losses = [f"{first['losses'][x]:.3f}" for x in names]
        rows.append([RULES[family].title, *losses, " → ".join(amounts)])
    head = [
        "", "held-out loss, 32-bit (Optax)", "held-out loss, 8-bit", "state bytes per parameter",
    ]  # fmt: skip
    return table(head, rows, _demo_record())


def _demo_record():
    return records.load("quality-demo")


def demo_seeds(family):
    """How far a family's 8-bit training ends from Optax's, for every seed."""
    apart = [x["losses"][f"{family}8bit"] - x["losses"][f"optax.{family}"] for x in _runs()]
    return ", ".join(f"{x:+.3f}" for x in apart)


def demo_interval(family):
    """The same as a mean with its confidence interval."""
    apart = [x["losses"][f"{family}8bit"] - x["losses"][f"optax.{family}"] for x in _runs()]
    return str(interval(apart))


def draw():
    """Draws the plots of all records that there are."""
    pictures.draw()


def _key(way):
    return "moved" if way == MOVED else way.name.replace(", ", "-")


def _made():
    made = {
        "quality.synthetic.scales": scales,
        "accuracy.bounds": bounds,
        "accuracy.codecs": codecs,
        "accuracy.later": later,
        "demo.table": demo,
        "demo.short": demo_short,
        "demo.baseline": lambda: f"{_runs()[0]['baseline']:.3f}",
        "demo.parameters": lambda: f"{_runs()[0]['parameters']:,}",
        "demo.steps": lambda: str(_runs()[0]["steps"]),
    }
    for rule in ("lion", "adamw"):
        made[f"quality.synthetic.{rule}"] = functools.partial(kinds, rule)
        for way in CODED:
            for kind in KINDS:
                key = f"quality.synthetic.{rule}.{_key(way)}.{kind}"
                made[key] = functools.partial(one_kind, rule, way.name, kind, "differs")
            key = f"quality.synthetic.{rule}.{_key(way)}.late"
            made[key] = functools.partial(one_kind, rule, way.name, "turning", "late")
    for family in RULES:
        made[f"demo.{family}.seeds"] = functools.partial(demo_seeds, family)
        made[f"demo.{family}.interval"] = functools.partial(demo_interval, family)
    for task in ("text", "digits"):
        made[f"quality.{task}.about"] = functools.partial(about, task)
        made[f"quality.{task}.losses"] = functools.partial(losses, task)
        made[f"quality.{task}.steps"] = functools.partial(steps_apart, task)
        made[f"quality.{task}.undecided"] = functools.partial(undecided, task)
        for rule in RULES:
            made[f"quality.{task}.{rule}.noise"] = functools.partial(seed_noise, task, rule)
            for way in TRAINED[1:]:
                key = f"quality.{task}.{rule}.{_key(way)}"
                made[key] = functools.partial(one_loss, task, rule, way.name)
                for i, part in enumerate(("median", "99", "worst") if way.codec else ()):
                    if rule != "lion":
                        made[f"{key}.{part}"] = functools.partial(
                            one_step, task, rule, way.name, "error", i
                        )
                for part in ("differs", "opposite") if way.codec and rule == "lion" else ():
                    made[f"{key}.{part}"] = functools.partial(one_step, task, rule, way.name, part)
    return made


FIGURES = _made()
