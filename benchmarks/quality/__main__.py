"""Measures what 8-bit state changes, and keeps it as records.

    python -m benchmarks.quality                  # everything: 35 minutes on one core
    python -m benchmarks.quality text             # or: digits, synthetic, accuracy, demo
    python -m benchmarks.quality text --steps 40  # to try it: nothing is kept

What has been measured of a part is in `optax-lamblion-runs/quality` and not measured again, so that
a command that was interrupted goes on.
"""

from benchmarks import commands, records
from benchmarks.quality import accuracy, demo, report, synthetic, tasks, training, variants
from benchmarks.quality.kept import Kept

STEPS = 2000
PARTS = ("text", "digits", "synthetic", "accuracy", "demo")
PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "scipy", "scikit-learn")


def main(arguments=None):
    """Measures the parts that are named."""
    parser = commands.parser("quality", __doc__, draws=True)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    args = parser.parse_args(arguments)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"There is no part {', '.join(unknown)}. Choose from: {', '.join(PARTS)}.")
    if args.draw:
        return report.draw()
    kept = Kept(None if args.steps else args.runs)
    steps = args.steps or STEPS
    for part in args.parts or PARTS:
        results = measure(part, steps, kept)
        if not args.steps:
            name, command = record_name(part), f"python -m benchmarks.quality {part}"
            records.save(name, records.new(command, results, PACKAGES))
    if not args.steps:
        report.draw()


def record_name(part):
    """The name of the record of a part."""
    return part if part == "accuracy" else f"quality-{part}"


def measure(part, steps, kept):
    """The results of a part."""
    if part == "accuracy":
        return kept(part, accuracy.measure)
    if part == "demo":
        return demo.measure(kept)
    results = {"steps": steps, "seeds": tasks.SEEDS, "rules": {}}
    if part == "synthetic":
        results["elements"] = synthetic.ELEMENTS
        for rule in (variants.RULES["lion"], variants.RULES["adamw"]):
            results["rules"][rule.name] = {
                way.name: kept(
                    f"{part} {rule.name} {way.name}",
                    lambda rule=rule, way=way: synthetic.compare(rule, way, steps=steps),
                )
                for way in variants.CODED
            }
        return results
    task = tasks.TASKS[part]()
    results |= {
        "title": task.title,
        "parameters": task.parameters,
        "batch_size": task.batch_size,
        "least": variants.LEAST,
    }
    for rule in variants.RULES.values():
        results["rules"][rule.name] = {
            "learning_rate": rule.learning_rate,
            "ways": {
                way.name: kept(
                    f"{part} {rule.name} {way.name}",
                    lambda rule=rule, way=way: training.train(task, rule, way, steps=steps),
                )
                for way in variants.TRAINED
            },
        }
    return results


if __name__ == "__main__":
    main()
